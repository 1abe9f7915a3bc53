package crypto

import (
	"crypto/cipher"
	"reflect"
	"runtime"
	"unsafe"
)

// wipeBehind has a key's expanded secrets overwritten when nobody has the key any more: not before, since a packet that
// is being sealed with zeroes instead would be there for everybody to read. That is why Seal and Open keep the key
// alive until the cipher is done. It happens at the garbage collection after the last use, and there is one every two
// minutes at least.
func wipeBehind(k *Key) {
	runtime.AddCleanup(k, func(secrets [2][]byte) {
		clear(secrets[0])
		clear(secrets[1])
	}, [2][]byte{memoryOf(k.sealing.aead), memoryOf(k.opening.aead)})
}

// memoryOf returns the memory of the value that a cipher is a pointer to, nil if it is not a pointer or if the value refers to more.
// The ciphers' libraries have no function that wipes.
func memoryOf(c any) []byte {
	v := reflect.ValueOf(c)
	if v.Kind() != reflect.Pointer || !flat(v.Type().Elem()) {
		return nil
	}
	return unsafe.Slice((*byte)(v.UnsafePointer()), v.Type().Elem().Size())
}

// flat reports whether values of a type lie in one piece of memory.
func flat(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Array:
		return flat(t.Elem())
	case reflect.Struct:
		for f := range t.Fields() {
			if !flat(f.Type) {
				return false
			}
		}
		return true
	case reflect.Bool, reflect.Int, reflect.Uint8, reflect.Uint32, reflect.Uint64:
		return true
	}
	return false
}

// newGCM returns GCM with a block cipher. If it keeps a copy, the original is wiped.
func newGCM(block cipher.Block) (cipher.AEAD, error) {
	aead, err := cipher.NewGCM(block)
	if memoryOf(aead) != nil {
		clear(memoryOf(block))
	}
	return aead, err
}

package crypto

// NewAEAD lets known-answer tests use nonces and associated data that no packet has.
var NewAEAD = newAEAD

// NewGCM and MemoryOf are for ciphers other than those of a key.
var (
	NewGCM   = newGCM
	MemoryOf = memoryOf
)

// SetTaken makes a key look as if packet ids up to last had been handed out.
func SetTaken(k *Key, last uint32) { k.sealing.taken.Store(uint64(last)) }

// Secrets returns the memory of a key's expanded secrets, for looking at it when the key is gone.
func Secrets(k *Key) [][]byte { return [][]byte{memoryOf(k.sealing.aead), memoryOf(k.opening.aead)} }

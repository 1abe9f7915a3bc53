package oracle

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// archive makes a cpio archive in the "newc" format, which the kernel unpacks over what an earlier archive of the
// same initrd held. The files lie under dir; all are regular and executable. The result is padded to whole blocks,
// so that another archive may follow.
func archive(dir string, files map[string][]byte) ([]byte, error) {
	var names []string
	for name := range files {
		if !fs.ValidPath(name) || name == "." {
			return nil, fmt.Errorf("job file %q: %w", name, fs.ErrInvalid)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	var b bytes.Buffer
	made := map[string]bool{}
	var parents func(name string)
	parents = func(name string) {
		if parent := path.Dir(name); parent != "." && !made[parent] {
			made[parent] = true
			parents(parent)
			entry(&b, parent, 0o040755, nil)
		}
	}
	for _, name := range names {
		full := path.Join(dir, name)
		parents(full)
		entry(&b, full, 0o100755, files[name])
	}
	entry(&b, "TRAILER!!!", 0, nil)
	const block = 512
	pad(&b, block)
	return b.Bytes(), nil
}

// entry appends one member: a header of 13 hexadecimal fields, the name with its NUL and the content, each padded to
// four bytes (Documentation/driver-api/early-userspace/buffer-format.rst).
func entry(b *bytes.Buffer, name string, mode uint32, content []byte) {
	b.WriteString("070701")
	for _, field := range []uint32{
		0, mode, 0, 0, // inode, mode, uid, gid
		1, 0, uint32(len(content)), // links, time, size
		0, 0, 0, 0, // device numbers
		uint32(len(name) + 1), 0, // name size, checksum
	} {
		fmt.Fprintf(b, "%08X", field)
	}
	b.WriteString(name + "\x00")
	pad(b, 4)
	b.Write(content)
	pad(b, 4)
}

func pad(b *bytes.Buffer, to int) {
	if n := b.Len() % to; n != 0 {
		b.WriteString(strings.Repeat("\x00", to-n))
	}
}

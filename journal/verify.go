package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// verify proves that a bbolt file can be opened safely. bbolt reads pages
// through a memory map and follows their ids and offsets as they are: on a
// damaged file it panics, faults or never ends. So every page that it could
// reach is looked at here first, through bounded reads: metas, tree, free list.
// (The format is that of go.etcd.io/bbolt, version 2; it has not changed since
// 2014. What the values say has checksums of its own.)
//
// suspect means that one of the two meta pages is no good. They are written in
// turn, so the other may be one transaction behind.
func verify(r io.ReaderAt, size int64) (suspect bool, err error) {
	meta, suspect, err := newestMeta(r, size)
	if err != nil {
		return false, err
	}
	v := verifier{r: r, meta: meta, seen: map[uint64]bool{0: true, 1: true}}
	if meta.pages < 4 || meta.pages > uint64(size)/meta.pageSize {
		return false, fmt.Errorf("%w: %d bytes, but %d pages of %d bytes", io.ErrUnexpectedEOF, size, meta.pages, meta.pageSize)
	}
	if err := v.tree(meta.root, nil, nil, true); err != nil {
		return false, err
	}
	return suspect, v.freelist()
}

var (
	errPage     = errors.New("bad page")
	errPageSize = errors.New("bad page size")
)

// The layout of a page and the flags of its kinds.
const (
	pageHeader   = 16
	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagMeta     = 0x04
	flagFreelist = 0x10
	elemSize     = 16
	elemBucket   = 0x01
	metaMagic    = 0xED0CDAED
	metaVersion  = 2
	metaSummed   = 56 // bytes of a meta that its checksum covers
	minPageSize  = 1 << 10
	maxPageSize  = 1 << 24
)

type boltMeta struct{ pageSize, root, freelist, pages, txid uint64 }

func newestMeta(r io.ReaderAt, size int64) (newest boltMeta, suspect bool, err error) {
	found := 0
	try := func(off int64) {
		m, merr := readMeta(r, off)
		if merr != nil {
			err = errors.Join(err, merr)
			return
		}
		if found++; found == 1 || m.txid > newest.txid {
			newest = m
		}
	}
	try(0)
	if found == 1 {
		try(int64(newest.pageSize))
	} else {
		for off := int64(minPageSize); off <= maxPageSize && off < size && found == 0; off *= 2 {
			try(off)
		}
	}
	if found == 0 {
		return boltMeta{}, false, err
	}
	// bbolt goes by magic, version and checksum alone. Of what passes these, none
	// may be passed over here: bbolt could choose it.
	if errors.Is(err, errPageSize) {
		return boltMeta{}, false, err
	}
	return newest, found == 1, nil
}

func readMeta(r io.ReaderAt, off int64) (boltMeta, error) {
	b := make([]byte, pageHeader+metaSummed+8)
	if _, err := r.ReadAt(b, off); err != nil {
		return boltMeta{}, fmt.Errorf("meta page at %d: %w", off, noEOF(err))
	}
	m := b[pageHeader:]
	le := binary.LittleEndian
	if le.Uint32(m) != metaMagic {
		return boltMeta{}, fmt.Errorf("%w: no meta page at %d", errPage, off)
	}
	if v := le.Uint32(m[4:]); v != metaVersion {
		return boltMeta{}, fmt.Errorf("%w: bbolt version %d at %d", errPage, v, off)
	}
	h := fnv.New64a()
	h.Write(m[:metaSummed])
	if h.Sum64() != le.Uint64(m[metaSummed:]) {
		return boltMeta{}, fmt.Errorf("%w: checksum of the meta page at %d", errPage, off)
	}
	meta := boltMeta{
		pageSize: uint64(le.Uint32(m[8:])), root: le.Uint64(m[16:]), freelist: le.Uint64(m[32:]),
		pages: le.Uint64(m[40:]), txid: le.Uint64(m[48:]),
	}
	if ps := meta.pageSize; ps < minPageSize || ps > maxPageSize || ps&(ps-1) != 0 || off != 0 && uint64(off) != ps {
		return boltMeta{}, fmt.Errorf("%w %d, in the meta page at %d", errPageSize, ps, off)
	}
	return meta, nil
}

type verifier struct {
	r    io.ReaderAt
	meta boltMeta
	seen map[uint64]bool // pages reached so far, by any way
}

// page reads a page with what overflows it, which nothing else may refer to.
func (v *verifier) page(id uint64, kinds uint16) ([]byte, error) {
	fail := func(what string) ([]byte, error) { return nil, fmt.Errorf("%w %d: %s", errPage, id, what) }
	if id < 2 || id >= v.meta.pages {
		return fail("out of bounds")
	}
	head := make([]byte, pageHeader)
	if _, err := v.r.ReadAt(head, int64(id*v.meta.pageSize)); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, noEOF(err))
	}
	flags, overflow := binary.LittleEndian.Uint16(head[8:]), uint64(binary.LittleEndian.Uint32(head[12:]))
	switch {
	case binary.LittleEndian.Uint64(head) != id:
		return fail("it calls itself another")
	case flags&kinds != flags || flags == 0 || flags&(flags-1) != 0:
		return fail(fmt.Sprintf("flags %#x", flags))
	case overflow >= v.meta.pages-id:
		return fail("overflow out of bounds")
	}
	for i := id; i <= id+overflow; i++ {
		if v.seen[i] {
			return fail("referred to twice")
		}
		v.seen[i] = true
	}
	b := make([]byte, (overflow+1)*v.meta.pageSize)
	if _, err := v.r.ReadAt(b, int64(id*v.meta.pageSize)); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, noEOF(err))
	}
	return b, nil
}

// tree walks the pages below id, whose keys lie in [low, high). Only the root
// tree may hold buckets: the journal nests none. No cycle: page refuses the
// second visit.
func (v *verifier) tree(id uint64, low, high []byte, buckets bool) error {
	b, err := v.page(id, flagBranch|flagLeaf)
	if err != nil {
		return err
	}
	if err := v.elements(b, low, high, buckets); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

type element struct {
	child      uint64 // branch pages
	flags      uint32 // leaf pages
	key, value []byte
}

func (v *verifier) elements(b, low, high []byte, buckets bool) error {
	elems, branch, err := parsePage(b)
	if err != nil {
		return err
	}
	for i, e := range elems {
		// A branch's first key may be above the least key that ever was below it,
		// never below what its parent says.
		if i == 0 && low != nil && bytes.Compare(e.key, low) < 0 ||
			i > 0 && bytes.Compare(e.key, elems[i-1].key) <= 0 ||
			high != nil && bytes.Compare(e.key, high) >= 0 {
			return fmt.Errorf("%w: key %d out of order", errPage, i)
		}
		switch {
		case branch:
			next := high
			if i+1 < len(elems) {
				next = elems[i+1].key
			}
			if err := v.tree(e.child, e.key, next, buckets); err != nil {
				return err
			}
		case e.flags == 0:
		case e.flags == elemBucket && buckets:
			if err := v.bucket(e.value); err != nil {
				return fmt.Errorf("bucket %q: %w", e.key, err)
			}
		default:
			return fmt.Errorf("%w: flags %#x of key %d", errPage, e.flags, i)
		}
	}
	return nil
}

// bucket looks at a bucket's value: the root of its tree or, small, its one page.
func (v *verifier) bucket(value []byte) error {
	if len(value) < 16 {
		return fmt.Errorf("%w: %d bytes", errPage, len(value))
	}
	if root := binary.LittleEndian.Uint64(value); root != 0 {
		return v.tree(root, nil, nil, false)
	}
	inline := value[16:]
	if len(inline) < pageHeader || binary.LittleEndian.Uint16(inline[8:]) != flagLeaf {
		return fmt.Errorf("%w: inline, but no leaf", errPage)
	}
	return v.elements(inline, nil, nil, false)
}

// parsePage cuts a page into its elements, none of which leaves it.
func parsePage(b []byte) (elems []element, branch bool, err error) {
	le := binary.LittleEndian
	branch = le.Uint16(b[8:]) == flagBranch
	n := int(le.Uint16(b[10:]))
	if branch && n == 0 || pageHeader+n*elemSize > len(b) {
		return nil, false, fmt.Errorf("%w: %d elements", errPage, n)
	}
	elems = make([]element, n)
	for i := range elems {
		at := pageHeader + i*elemSize
		h := b[at:]
		var pos, ksize, vsize uint64
		if branch {
			pos, ksize = uint64(le.Uint32(h)), uint64(le.Uint32(h[4:]))
			elems[i].child = le.Uint64(h[8:])
		} else {
			elems[i].flags = le.Uint32(h)
			pos, ksize, vsize = uint64(le.Uint32(h[4:])), uint64(le.Uint32(h[8:])), uint64(le.Uint32(h[12:]))
		}
		if pos < elemSize || ksize == 0 || uint64(at)+pos+ksize+vsize > uint64(len(b)) {
			return nil, false, fmt.Errorf("%w: element %d leaves it", errPage, i)
		}
		elems[i].key = h[pos : pos+ksize]
		elems[i].value = h[pos+ksize : pos+ksize+vsize]
	}
	return elems, branch, nil
}

// freelist checks that every page is either reached or free, and none is both:
// a page handed out while in use would be overwritten.
func (v *verifier) freelist() error {
	b, err := v.page(v.meta.freelist, flagFreelist)
	if err != nil {
		return fmt.Errorf("free list: %w", err)
	}
	ids := b[pageHeader:]
	n := uint64(binary.LittleEndian.Uint16(b[10:]))
	if n == 0xFFFF {
		n, ids = binary.LittleEndian.Uint64(ids), ids[8:]
	}
	if n > uint64(len(ids))/8 {
		return fmt.Errorf("%w: free list of %d pages", errPage, n)
	}
	for i := range n {
		id := binary.LittleEndian.Uint64(ids[8*i:])
		if id < 2 || id >= v.meta.pages || v.seen[id] {
			return fmt.Errorf("%w: free page %d is in use or none", errPage, id)
		}
		v.seen[id] = true
	}
	if uint64(len(v.seen)) != v.meta.pages {
		return fmt.Errorf("%w: %d of %d pages are neither used nor free", errPage, v.meta.pages-uint64(len(v.seen)), v.meta.pages)
	}
	return nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

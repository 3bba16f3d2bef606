package fusefs

import "github.com/chromafs/chromafs/internal/tree"

// nextDataAtCut returns where in [off, end) the view's file has data; end if there is
// none. As with reading, mu held shared means that a block which is not saved is in the
// backing file what it was at the cut: a hole too. Of what is saved scratch holds the
// data, so where that has a hole there was one. What is said once stays true.
func (f *viewFile) nextDataAtCut(off, end int64) int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.dead || f.v.err() != nil || end > f.size {
		return off // reading tells why
	}
	last := (end-1)/blockSize + 1
	for off < end {
		saved, until := f.saved.run(off/blockSize, last)
		fd := f.fd
		if saved {
			fd = f.scratch
		}
		stop := min(until*blockSize, end)
		if data := tree.SeekData(fd, off, stop); data < stop {
			return data
		}
		off = stop
	}
	return end
}

// allocated returns how many bytes the file takes on disk, those included that were
// saved since the cut.
func (f *viewFile) allocated() (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if err := f.v.err(); err != nil {
		return 0, err
	}
	n, err := tree.AllocatedFile(f.fd)
	return n + f.used, err
}

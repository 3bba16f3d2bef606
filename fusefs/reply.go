package fusefs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// replyEntry tells the kernel about an inode that it looked up or made. The
// kernel owns one reference from now on.
func replyEntry(out *fuse.EntryOut, n *inode, st *unix.Stat_t) {
	out.NodeId = n.id
	out.SetEntryTimeout(cacheTime)
	out.SetAttrTimeout(cacheTime)
	replyAttr(&out.Attr, st)
}

// replyAttr fills in what stat(2) said. Of a file that the kernel caches writes
// for, it ignores size and times, which it knows better.
func replyAttr(out *fuse.Attr, st *unix.Stat_t) {
	*out = fuse.Attr{
		Ino: st.Ino, Size: uint64(st.Size), Blocks: uint64(st.Blocks),
		Atime: uint64(st.Atim.Sec), Atimensec: uint32(st.Atim.Nsec),
		Mtime: uint64(st.Mtim.Sec), Mtimensec: uint32(st.Mtim.Nsec),
		Ctime: uint64(st.Ctim.Sec), Ctimensec: uint32(st.Ctim.Nsec),
		Mode: st.Mode, Nlink: uint32(st.Nlink), Owner: fuse.Owner{Uid: st.Uid, Gid: st.Gid},
		Rdev: uint32(st.Rdev), Blksize: uint32(st.Blksize),
	}
}

// status is what go-fuse calls an errno.
func status(errno syscall.Errno) fuse.Status { return fuse.Status(errno) }

// Package fusefs serves a directory through a FUSE mount, reports every mutation
// before it applies it, and cuts the whole directory at one instant.
//
// The model. A backing directory is reached only through descriptors that were
// opened before mounting: each inode that the kernel knows has one (O_PATH), and
// a request is an openat-family call relative to it. No path is ever joined and
// opened, so renames cannot race, a symbolic link cannot lead out, and the mount
// may lie on top of the directory that it serves. The kernel caches names,
// attributes and pages for long, and writes (writeback), because all changes come
// through the mount; it checks permissions too, and keeps file locks, since all
// lockers are on one host.
//
// A mutation goes through (*fsys).mutate, and nothing else changes the backing
// directory: its paths are marked durably with the Recorder, then it passes the
// gate, which a cut closes for an instant, then it is applied.
//
// Promises kept here (DESIGN §1): F1 an operation answers as on the backing
// directory (exceptions: docs/semantics.md), F2 no mutation without its mark,
// F3 fsync is a barrier for the whole mount (with one exception, which busyTracker's
// fsync names), F4 a cut never becomes the application's trouble, F5 killing the
// daemon leaves nothing that cannot die or be replaced, and J1 as far as it is about
// order. S1 is (*FS).Cut.
package fusefs

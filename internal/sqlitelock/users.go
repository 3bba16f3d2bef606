package sqlitelock

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/chromafs/chromafs/internal/mountinfo"
)

// User is a process that has a database open by its path in the directory.
type User struct {
	PID     int
	Command string
	Path    string // of the database, relative to the directory
}

// Users returns the other processes that have one of the databases open, leaving
// out those that opened it on a chromafs mount. It reads /proc and never asks a
// file system about an open file, which could be one that waits for this very
// process. Processes of other users are only seen by root.
func Users(databases []Database) ([]User, error) {
	byInode := map[uint64]Database{}
	for _, db := range databases {
		byInode[db.Inode] = db
	}
	if len(byInode) == 0 {
		return nil, nil
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for users of databases: %w", err)
	}
	var users []User
	for _, proc := range procs {
		pid, err := strconv.Atoi(proc.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		for _, db := range usedBy(pid, byInode) {
			users = append(users, User{PID: pid, Command: command(pid), Path: db.Path})
		}
	}
	return users, nil
}

// usedBy treats what cannot be read as not used: processes end while they are
// looked at, and those of other users show nothing.
func usedBy(pid int, byInode map[uint64]Database) []Database {
	infos, err := os.ReadDir(fmt.Sprintf("/proc/%d/fdinfo", pid))
	if err != nil {
		return nil
	}
	var used []Database
	seen := map[uint64]bool{}
	for _, info := range infos {
		inode, mount, ok := fdinfo(pid, info.Name())
		db, known := byInode[inode]
		if !ok || !known || seen[inode] {
			continue
		}
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, info.Name()))
		if err != nil || path.Base(link) != path.Base(db.Path) || onChromafs(pid, mount) {
			continue
		}
		seen[inode] = true
		used = append(used, db)
	}
	return used
}

func fdinfo(pid int, fd string) (inode uint64, mount int, ok bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", pid, fd))
	if err != nil {
		return 0, 0, false
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch name {
		case "ino":
			inode, err = strconv.ParseUint(value, 10, 64)
			ok = err == nil
		case "mnt_id":
			mount, _ = strconv.Atoi(value)
		}
	}
	return inode, mount, ok
}

// onChromafs looks the mount up in the process's own namespace.
func onChromafs(pid, mount int) bool {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return false
	}
	defer f.Close()
	mounts, err := mountinfo.Parse(f)
	if err != nil {
		return false
	}
	for _, m := range mounts {
		if m.ID == mount {
			_, ours := m.Key()
			return ours
		}
	}
	return false
}

func command(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "?"
	}
	return string(bytes.TrimSpace(text))
}

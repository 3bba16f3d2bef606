package fusefs

import (
	"math/rand/v2"

	"golang.org/x/sys/unix"
)

// model makes random steps on a small set of names, so that they collide. One of
// them makes its folder a segment, whose changes go to an undo log too.
type model struct {
	rnd         *rand.Rand
	paths       []string
	sizes, offs []int64
	modes       []int
	groups      []func(model) step
}

// newModel makes every kind of step.
func newModel(seed uint64) model {
	return model{
		rnd: rand.New(rand.NewPCG(seed, 1)),
		paths: []string{"a", "b", "c", "d", "e/a", "e/b", "e/f", "e/f/a", "e/f/b", "g", "g/a", "g/h", "g/h/a", "g/" + pickleName,
			"no/such", "n*255", "n*256"},
		sizes: []int64{1, 3, 100, 4095, 4096, 4097, 8192, 70_000, 300_000},
		offs:  []int64{0, 1, 100, 4096, 5000, 8192, 65_536, 100_000, 1 << 20},
		modes: []int{0o644, 0o755, 0o600, 0o000, 0o200, 0o4755, 0o2755, 0o6755, 0o1777},
		groups: []func(model) step{model.namespace, model.namespace, model.descriptor, model.descriptor, model.descriptor,
			model.attributes, model.look, model.mapping, model.cut},
	}
}

func pick[T any](m model, from ...T) T { return from[m.rnd.IntN(len(from))] }

func (m model) path() string   { return pick(m, m.paths...) }
func (m model) size() int64    { return pick(m, m.sizes...) }
func (m model) off() int64     { return pick(m, m.offs...) }
func (m model) mode() int      { return pick(m, m.modes...) }
func (m model) letter() string { return string(rune('A' + m.rnd.IntN(26))) }

// step picks the next operation.
func (m model) step() step { return pick(m, m.groups...)(m) }

func (m model) namespace() step {
	p, q := m.path(), m.path()
	switch m.rnd.IntN(9) {
	case 0:
		return newStep("mkdir", p, m.mode()|0o700)
	case 1:
		return newStep("rmdir", p)
	case 2:
		return newStep("unlink", p)
	case 3:
		return newStep("link", p, q)
	case 4:
		return newStep("symlink", q, p)
	case 5:
		return newStep("mkfifo", p, m.mode())
	case 6:
		return newStep("mknod", p, m.mode())
	default:
		return newStep("rename", p, q, pick(m, 0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE))
	}
}

func (m model) descriptor() step {
	i, off := m.rnd.IntN(4), m.off()
	switch m.rnd.IntN(13) {
	case 0, 1, 2:
		flags := pick(m, unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_WRONLY|unix.O_APPEND, unix.O_RDWR|unix.O_TRUNC,
			unix.O_RDONLY|unix.O_TRUNC, unix.O_RDWR|unix.O_EXCL) | pick(m, 0, unix.O_CREAT, unix.O_CREAT, unix.O_NOFOLLOW)
		return newStep("open", i, m.path(), flags, m.mode())
	case 3:
		return newStep("write", i, m.size(), m.letter())
	case 4, 5:
		return newStep("pwrite", i, m.size(), m.letter(), off)
	case 6:
		return newStep("pread", i, off)
	case 7:
		return newStep("ftruncate", i, off)
	case 8:
		mode := pick(m, 0, unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE)
		return newStep("fallocate", i, mode, off, m.off())
	case 9:
		return newStep("lseek", i, off, pick(m, unix.SEEK_DATA, unix.SEEK_HOLE, unix.SEEK_END, unix.SEEK_SET))
	case 10:
		return newStep("copy", i, off, m.rnd.IntN(4), m.off())
	case 11:
		return newStep("close", i)
	default:
		return newStep("fsync", i)
	}
}

// writing makes steps that change content more often than not.
func (m model) writing() step {
	i := m.rnd.IntN(2)
	switch m.rnd.IntN(8) {
	case 0:
		return newStep("open", i, m.path(), unix.O_RDWR|unix.O_CREAT, m.mode())
	case 1:
		return newStep("open", i, m.path(), unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND, m.mode())
	case 2, 3:
		return newStep("write", i, m.size(), m.letter())
	case 4:
		return newStep("ftruncate", i, m.off())
	default:
		return newStep("pwrite", i, m.size(), m.letter(), m.off())
	}
}

func (m model) attributes() step {
	p, off := m.path(), m.off()
	switch m.rnd.IntN(5) {
	case 0:
		return newStep("chmod", p, m.mode())
	case 1:
		return newStep("lchown", p, pick(m, -1, 0, 1000, 65534))
	case 2:
		return newStep("truncate", p, off)
	case 3:
		return newStep("utimens", p, off)
	default:
		return newStep("mtime", p, off)
	}
}

func (m model) look() step {
	return newStep(pick(m, "readdir", "readlink", "access", "stat"), m.path())
}

func (m model) mapping() step {
	slot := m.rnd.IntN(2)
	switch m.rnd.IntN(8) {
	case 0, 1:
		return newStep("map", slot, m.path())
	case 2:
		return newStep("unmap", slot)
	case 3:
		return newStep("msync", slot)
	default:
		return newStep("store", slot, m.off(), m.size(), m.letter())
	}
}

// cut begins and ends views, and looks into the one that is open.
func (m model) cut() step {
	switch m.rnd.IntN(6) {
	case 0, 1:
		return newStep("cut")
	case 2:
		return newStep("check")
	default:
		return newStep("peek", m.path())
	}
}

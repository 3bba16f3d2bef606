package journal

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
)

// Check verifies that the journal is whole: every value in memory makes sense,
// journal.db is sound, is the file that it says it is and holds the same, and so
// does the reserve block. While a failed commit has left journal.db uncertain,
// it is left out. Tests run Check when they end.
func (j *Journal) Check() error {
	j.commitMu.Lock()
	defer j.commitMu.Unlock()
	if j.closed {
		return fmt.Errorf("check the journal: %w", ErrClosed)
	}
	err := errors.Join(j.content.head.valid(), j.content.valid())
	for _, r := range j.content.base {
		err = errors.Join(err, validRecord(r))
	}
	if !j.unsure {
		err = errors.Join(err, j.reserve.check(j.all))
	}
	if !j.store.broken {
		err = errors.Join(err, j.store.check(&j.content))
	}
	if err != nil {
		return fmt.Errorf("check the journal: %w", err)
	}
	return nil
}

// check compares the file with c, which it should hold.
func (s *store) check(c *content) error {
	info, err := s.file.Stat()
	if err != nil {
		return err
	}
	if _, err := verify(s.file, info.Size()); err != nil {
		return &DamagedError{Name: fileName, Err: err}
	}
	inode, born, err := identity(s.file)
	if err != nil {
		return err
	}
	if inode != c.head.Inode || born != c.head.Born {
		return fmt.Errorf("%w: %s is inode %d born %d, and says %d born %d", errValue, fileName, inode, born, c.head.Inode, c.head.Born)
	}
	disk, err := s.load()
	if errors.Is(err, errPanic) {
		s.abandon()
	}
	if err != nil {
		return damagedUnlessIO(err)
	}
	there, err := encodeHeader(disk.head)
	if err != nil {
		return err
	}
	here, err := encodeHeader(c.head)
	if err != nil {
		return err
	}
	if !bytes.Equal(there, here) || !maps.Equal(disk.marks, c.marks) || !maps.Equal(disk.stats, c.stats) ||
		!maps.EqualFunc(disk.base, c.base, sameRecord) {
		return fmt.Errorf("%w: %s does not hold what memory does", errValue, fileName)
	}
	return nil
}

// Package failpoint names instants at which a test can make the program die,
// fail, wait or stop. In a normal build every point is an empty function that the
// compiler removes; with the build tag "failpoints" the environment variable
// CHROMAFS_FAILPOINTS says what happens where:
//
//	CHROMAFS_FAILPOINTS='uploader/published=kill;fusefs/write=sleep:2s*1'
//
// Actions: kill (SIGKILL to the process), error:ENOSPC (return that errno),
// sleep:DURATION, hold:PATH (wait until PATH exists), off (a mechanism that asks
// Off is left out: proof that a test would notice). A suffix "*N" limits an
// action to the first N hits, "+N" lets the first N hits pass. Whenever an action
// happens, a line "failpoint NAME" is appended to the file that
// CHROMAFS_FAILPOINTS_LOG names, so that a test knows that the point was reached.
package failpoint

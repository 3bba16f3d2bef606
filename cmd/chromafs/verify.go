package main

import (
	"context"
	"log/slog"

	"github.com/chromafs/chromafs/internal/dbcheck"
	"github.com/chromafs/chromafs/uploader"
)

// databaseCheck returns what the uploader calls before it publishes; nil for
// --verify none. What could not be judged is logged, and published.
func databaseCheck(verify string, log *slog.Logger) uploader.CheckFunc {
	mode := dbcheck.Mode(verify)
	if mode == dbcheck.None {
		return nil
	}
	return func(ctx context.Context, view uploader.View, changed func(string) bool) ([]string, error) {
		report, err := dbcheck.Check(ctx, view, mode, changed)
		if err != nil {
			return nil, err
		}
		for _, doubt := range report.Doubts {
			log.Warn("about a database that goes into the snapshot", "path", doubt.Path, "finding", doubt.What)
		}
		var damage []string
		for _, d := range report.Damage {
			damage = append(damage, d.String())
		}
		return damage, nil
	}
}

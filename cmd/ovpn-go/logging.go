package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/spf13/pflag"
)

// logFlags are the flags by which a user chooses what is logged, where to and how.
type logFlags struct {
	level  slog.Level
	format string
	file   string
}

func (f *logFlags) register(flags *pflag.FlagSet) {
	flags.TextVar(&f.level, "log-level", slog.LevelInfo, "least severe messages to log: debug, info, warn or error")
	flags.StringVar(&f.format, "log-format", "text", "log format: text or json")
	flags.StringVar(&f.file, "log-file", "", "append the log to this file instead of standard error")
}

// open returns the logger that the flags describe and a function that ends it.
func (f *logFlags) open() (*slog.Logger, func() error, error) {
	var out io.Writer = os.Stderr
	end := func() error { return nil }
	if f.file != "" {
		file, err := os.OpenFile(f.file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return nil, nil, fmt.Errorf("open log: %w", err)
		}
		out, end = file, file.Close
	}
	options := &slog.HandlerOptions{Level: f.level}
	switch f.format {
	case "text":
		return slog.New(slog.NewTextHandler(out, options)), end, nil
	case "json":
		return slog.New(slog.NewJSONHandler(out, options)), end, nil
	}
	end()
	return nil, nil, fmt.Errorf("--log-format %q: must be text or json", f.format)
}

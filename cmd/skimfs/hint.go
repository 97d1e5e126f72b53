package main

import (
	"errors"
	"io/fs"
)

// hintFor returns one line of advice for an error that carries none of its own, or "".
func hintFor(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "check who owns the file and whom it lets in"
	}
	return ""
}

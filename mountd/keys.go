package mountd

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/skimfs/skimfs/index"
)

// masterKey is the public key that a repository is trusted by.
type masterKey struct {
	note.Verifier
	text string
}

// maxKeyFile bounds what is read of a key file, in bytes.
const maxKeyFile = 4096

// ReadKeyFile returns the text of the public key in a file.
func ReadKeyFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, maxKeyFile)
	n, err := f.Read(b)
	if err != nil && n == 0 {
		return "", &Error{Usage, errors.Join(errors.New("reading key "+path), err)}
	}
	if _, err := index.ParseVerifier(string(b[:n])); err != nil {
		return "", problem(Usage, "%s: %w", path, err)
	}
	return strings.TrimSpace(string(b[:n])), nil
}

// findKey returns the key for the repository name: the one given, which must be that repository's, or NAME.pub of the first directory
// that has one.
func findKey(dirs []string, name, given string) (masterKey, error) {
	if given != "" {
		v, err := index.ParseVerifier(given)
		if err != nil {
			return masterKey{}, problem(Usage, "pubkey: %w", err)
		}
		if v.Name() != name {
			return masterKey{}, problem(NoKey, "the key given is of repository %q, the manifest of %q", v.Name(), name)
		}
		return masterKey{v, strings.TrimSpace(given)}, nil
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name+".pub")
		text, err := ReadKeyFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return masterKey{}, err
		}
		v, err := index.ParseVerifier(text)
		if err != nil {
			return masterKey{}, problem(NoKey, "%s: %w", path, err)
		}
		if v.Name() != name {
			return masterKey{}, problem(NoKey, "%s holds a key of repository %q", path, v.Name())
		}
		return masterKey{v, text}, nil
	}
	return masterKey{}, problem(NoKey, "no public key for repository %q in %s", name, strings.Join(dirs, " or "))
}

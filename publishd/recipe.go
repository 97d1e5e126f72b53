package publishd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"go.yaml.in/yaml/v3"
)

// recipe is a list of images to convert, as DUCC's wish list:
//
//	version: 1
//	input:
//	  - docker.io/library/debian:12
//	  - docker://registry.example.org/tools/gcc:13.*
type recipe struct {
	Version  int      `yaml:"version"`
	Platform string   `yaml:"platform"`
	Bare     bool     `yaml:"bare"`
	Input    []string `yaml:"input"`
}

const maxRecipe = 10_000 // images

func parseRecipe(text []byte) (recipe, error) {
	var r recipe
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&r); err != nil {
		return r, fmt.Errorf("recipe: %w", err)
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return r, errors.New("recipe: more than one document")
	}
	if r.Version != 1 {
		return r, fmt.Errorf("recipe: version %d, want 1", r.Version)
	}
	if len(r.Input) == 0 || len(r.Input) > maxRecipe {
		return r, fmt.Errorf("recipe: %d images, want 1 to %d", len(r.Input), maxRecipe)
	}
	for i, in := range r.Input {
		r.Input[i] = strings.TrimPrefix(strings.TrimPrefix(in, "docker://"), "https://")
		if r.Input[i] == "" {
			return r, fmt.Errorf("recipe: image %d has no name", i+1)
		}
		if _, pattern := wildcard(r.Input[i]); pattern != "" {
			if _, err := path.Match(pattern, ""); err != nil {
				return r, fmt.Errorf("recipe: image %q: %w", in, err)
			}
		}
	}
	return r, nil
}

// wildcard splits REPOSITORY:PATTERN, if the tag is a pattern.
func wildcard(input string) (repository, pattern string) {
	i := strings.LastIndex(input, ":")
	if i < 0 || strings.Contains(input[i:], "/") || !strings.ContainsAny(input[i:], "*?[") {
		return input, ""
	}
	return input[:i], input[i+1:]
}

package publish

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/skimfs/skimfs/index"
)

// archive is a tar file whose members are read in place, in any order and side by side.
type archive struct {
	f       *os.File
	members map[string]member
}

type member struct {
	offset, size int64
	link         string // of a link: the member it leads to
}

// openArchive reads the headers of a tar file and skips all contents.
func openArchive(name string) (*archive, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	a := &archive{f: f, members: map[string]member{}}
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return a, nil
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("%s is no (uncompressed) tar archive: %w", name, err)
		}
		// The reader stands at the first byte of the content: it reads headers without reading ahead.
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			f.Close()
			return nil, err
		}
		m := member{offset: at, size: h.Size}
		switch h.Typeflag {
		case tar.TypeSymlink:
			m.link = cleanName(path.Join(path.Dir(h.Name), h.Linkname))
		case tar.TypeLink:
			m.link = cleanName(h.Linkname)
		}
		a.members[cleanName(h.Name)] = m
	}
}

func (a *archive) Close() error { return a.f.Close() }

// section returns a member's content.
func (a *archive) section(name string) (*io.SectionReader, error) {
	name = cleanName(name)
	for range 8 {
		m, ok := a.members[name]
		if !ok {
			return nil, fmt.Errorf("member %q of %s: %w", name, a.f.Name(), fs.ErrNotExist)
		}
		if m.link == "" {
			return io.NewSectionReader(a.f, m.offset, m.size), nil
		}
		name = m.link
	}
	return nil, fmt.Errorf("member %q of %s: too many links", name, a.f.Name())
}

// file returns the content of a small member.
func (a *archive) file(name string, limit int64) ([]byte, error) {
	r, err := a.section(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > limit {
		return nil, fmt.Errorf("member %q of %s: %d bytes are too many", name, a.f.Name(), r.Size())
	}
	return io.ReadAll(r)
}

// open implements blobs for an OCI layout in the archive.
func (a *archive) open(_ context.Context, d index.Digest, _ int64) (io.ReadCloser, error) {
	r, err := a.section("blobs/sha256/" + d.Hex())
	if err != nil {
		return nil, err
	}
	return io.NopCloser(r), nil
}

func (a *archive) manifest(ctx context.Context, desc v1.Descriptor) ([]byte, error) {
	return readBlob(ctx, a, desc)
}

// dockerImage is an entry of manifest.json in what docker save writes.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func openDockerArchive(_ context.Context, s Source, want choice) (_ []*image, name string, _ io.Closer, err error) {
	a, err := openArchive(s.path)
	if err != nil {
		return nil, "", nil, err
	}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	data, err := a.file("manifest.json", maxJSON)
	if err != nil {
		return nil, "", nil, err
	}
	var all []dockerImage
	if err := json.Unmarshal(data, &all); err != nil {
		return nil, "", nil, fmt.Errorf("manifest.json: %w", err)
	}
	chosen, err := s.chooseDocker(all)
	if err != nil {
		return nil, "", nil, err
	}
	i, err := a.dockerImage(chosen)
	if err != nil {
		return nil, "", nil, err
	}
	if want.explicit && !want.all && !want.platform.matches(&v1.Platform{OS: i.platform.OS, Architecture: i.platform.Arch, Variant: i.platform.Variant}) {
		return nil, "", nil, fmt.Errorf("image is for %v only, not for %v", i.platform, want.platform)
	}
	name, ref := s.localName(), s.tag
	if ref == "" && len(chosen.RepoTags) > 0 {
		ref = chosen.RepoTags[0]
	}
	if ref != "" {
		if name, err = canonicalName(ref); err != nil {
			return nil, "", nil, err
		}
	}
	return []*image{i}, name, a, nil
}

func (s Source) chooseDocker(all []dockerImage) (dockerImage, error) {
	var tags []string
	for _, i := range all {
		tags = append(tags, i.RepoTags...)
		for _, tag := range i.RepoTags {
			if s.tag != "" && sameName(tag, s.tag) {
				return i, nil
			}
		}
	}
	if s.tag == "" && len(all) == 1 {
		return all[0], nil
	}
	if s.tag == "" {
		return dockerImage{}, fmt.Errorf("holds %d images: name one of %s", len(all), strings.Join(tags, ", "))
	}
	return dockerImage{}, fmt.Errorf("no image is called %q, there are: %s", s.tag, strings.Join(tags, ", "))
}

func sameName(a, b string) bool {
	x, errX := canonicalName(a)
	y, errY := canonicalName(b)
	return errX == nil && errY == nil && x == y
}

// dockerImage reads an image that has no image manifest. It gets the one that a copy of it with uncompressed layers would have.
func (a *archive) dockerImage(d dockerImage) (*image, error) {
	config, err := a.file(d.Config, maxJSON)
	if err != nil {
		return nil, err
	}
	i, err := newImage(index.Digest{}, config)
	if err != nil {
		return nil, err
	}
	if len(i.file.RootFS.DiffIDs) != len(d.Layers) {
		return nil, fmt.Errorf("image config: %d diff_ids for %d layers", len(i.file.RootFS.DiffIDs), len(d.Layers))
	}
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.DockerManifestSchema2, Config: v1.Descriptor{MediaType: types.DockerConfigJSON, Size: int64(len(config))}}
	if m.Config.Digest, _, err = v1.SHA256(bytes.NewReader(config)); err != nil {
		return nil, err
	}
	for n, name := range slices.All(d.Layers) {
		r, err := a.section(name)
		if err != nil {
			return nil, err
		}
		diffID, err := digestOf(i.file.RootFS.DiffIDs[n])
		if err != nil {
			return nil, err
		}
		open := func(context.Context) (io.ReadCloser, error) {
			r, err := a.section(name)
			return io.NopCloser(r), err
		}
		i.layers = append(i.layers, layerBlob{diffID: diffID, size: r.Size(), open: open})
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.DockerUncompressedLayer, Size: r.Size(), Digest: i.file.RootFS.DiffIDs[n]})
	}
	text, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	i.manifest = index.DigestOf(text)
	return i, nil
}

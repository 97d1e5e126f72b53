package publish

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/skimfs/skimfs/index"
)

// furnish adds what container runtimes look for and an image may lack: mount points, and the .singularity.d by which apptainer knows
// environment and entry point. What is there stays as it is. put stores the content of a file.
func furnish(root *index.Entry, img *image, put func(plain []byte) (index.Digest, error)) error {
	f := furnisher{m: merger{root: root, created: img.created()}, at: img.created(), put: put}
	for _, piece := range slices.Concat(mountPoints, apptainer(img.file.Config)) {
		if err := f.add(piece); err != nil {
			return fmt.Errorf("adding %s to the image: %w", piece.path, err)
		}
	}
	return nil
}

// piece is one thing that is added.
type piece struct {
	path string
	mode uint32
	text string // content of a file, target of a symlink
}

func dirPiece(path string, perm uint32) piece  { return piece{path, index.ModeDir | perm, ""} }
func filePiece(path, text string) piece        { return piece{path, index.ModeRegular | 0o644, text} }
func scriptPiece(path, text string) piece      { return piece{path, index.ModeRegular | 0o755, text} }
func linkPiece(path, target string) piece      { return piece{path, index.ModeSymlink | 0o777, target} }
func singularityPiece(name, text string) piece { return scriptPiece(".singularity.d/"+name, text) }

// mountPoints are the places where runtimes mount something when nothing writable lies above the image.
var mountPoints = []piece{
	dirPiece("dev", 0o755), dirPiece("etc", 0o755), dirPiece("home", 0o755), dirPiece("mnt", 0o755), dirPiece("opt", 0o755), dirPiece("proc", 0o755),
	dirPiece("root", 0o700), dirPiece("run", 0o755), dirPiece("srv", 0o755), dirPiece("sys", 0o755), dirPiece("tmp", 0o1777),
	dirPiece("var", 0o755), dirPiece("var/tmp", 0o1777),
	filePiece("etc/group", ""), filePiece("etc/hostname", ""), filePiece("etc/hosts", ""), filePiece("etc/passwd", ""), filePiece("etc/resolv.conf", ""),
	linkPiece("etc/mtab", "/proc/mounts"),
	filePiece("run/.containerenv", ""),
}

type furnisher struct {
	m   merger
	at  time.Time
	put func(plain []byte) (index.Digest, error)
}

// add puts a piece in its place, unless something is there or one of its parents is no directory.
func (f *furnisher) add(p piece) error {
	dir, name := path.Split(p.path)
	at, err := f.m.resolve(dir)
	if err != nil {
		return nil // a loop of symlinks: nobody can get there
	}
	parent, err := f.m.mkdirs(at)
	if err != nil || parent.Children[name] != nil {
		return nil
	}
	attr := index.Attr{Mode: p.mode, Sec: f.at.Unix(), Nsec: uint32(f.at.Nanosecond())}
	if attr.IsDir() {
		parent.Children[name] = index.NewDir(attr)
		return nil
	}
	e := &index.Entry{Inode: &index.Inode{Attr: attr}}
	if attr.IsSymlink() {
		e.Target = p.text
	} else {
		e.Size = int64(len(p.text))
		for chunk := range slices.Chunk([]byte(p.text), index.ChunkSize) {
			d, err := f.put(chunk)
			if err != nil {
				return err
			}
			e.Chunks = append(e.Chunks, d)
		}
		if len(e.Chunks) > 1 {
			e.File = index.DigestOf([]byte(p.text))
		}
	}
	parent.Children[name] = e
	return nil
}

// apptainer returns the pieces of .singularity.d. The directory libs stays empty: without it, apptainer asks ldconfig about every
// library of the image.
func apptainer(c v1.Config) []piece {
	labels, err := json.MarshalIndent(c.Labels, "", "\t")
	if err != nil || c.Labels == nil {
		labels = []byte("{}")
	}
	return []piece{
		dirPiece(".singularity.d", 0o755), dirPiece(".singularity.d/actions", 0o755), dirPiece(".singularity.d/env", 0o755), dirPiece(".singularity.d/libs", 0o755),
		singularityPiece("actions/exec", sourceEnv+`exec "$@"`+"\n"),
		singularityPiece("actions/run", sourceEnv+actionRun),
		singularityPiece("actions/shell", sourceEnv+actionShell),
		singularityPiece("actions/start", actionStart),
		singularityPiece("actions/test", sourceEnv+actionTest),
		singularityPiece("env/01-base.sh", "#!/bin/sh\n"),
		singularityPiece("env/10-docker2singularity.sh", envScript(c.Env)),
		singularityPiece("env/90-environment.sh", "#!/bin/sh\n# What the image adds to the environment belongs here.\n"),
		singularityPiece("env/95-apps.sh", "#!/bin/sh\n# This image has no apps.\n"),
		singularityPiece("env/99-base.sh", envBase),
		singularityPiece("env/99-runtimevars.sh", envRuntime),
		filePiece(".singularity.d/labels.json", string(labels)+"\n"),
		singularityPiece("runscript", runScript(c)),
		singularityPiece("startscript", "#!/bin/sh\n"),
		linkPiece(".exec", ".singularity.d/actions/exec"), linkPiece(".run", ".singularity.d/actions/run"),
		linkPiece(".shell", ".singularity.d/actions/shell"), linkPiece(".test", ".singularity.d/actions/test"),
		linkPiece("environment", ".singularity.d/env/90-environment.sh"), linkPiece("singularity", ".singularity.d/runscript"),
	}
}

const (
	sourceEnv = `#!/bin/sh
for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done
`
	actionRun = `if [ -x /.singularity.d/runscript ]; then
    exec /.singularity.d/runscript "$@"
fi
echo "this image has no runscript, starting /bin/sh" >&2
exec /bin/sh "$@"
`
	actionShell = `if [ -n "$APPTAINER_SHELL" ] && [ -x "$APPTAINER_SHELL" ]; then
    exec "$APPTAINER_SHELL" "$@"
fi
if [ -x /bin/bash ]; then
    export SHELL=/bin/bash PS1="Apptainer $APPTAINER_NAME:\w> "
    exec /bin/bash --norc "$@"
fi
export SHELL=/bin/sh
exec /bin/sh "$@"
`
	// The process that starts an instance waits for this signal.
	actionStart = `#!/bin/sh
kill -CONT 1
` + sourceEnvBody + `if [ -x /.singularity.d/startscript ]; then
    exec /.singularity.d/startscript
fi
`
	sourceEnvBody = `for script in /.singularity.d/env/*.sh; do
    [ ! -f "$script" ] || . "$script"
done
`
	actionTest = `if [ -x /.singularity.d/test ]; then
    exec /.singularity.d/test "$@"
fi
echo "this image has no test" >&2
`
	envBase = `#!/bin/sh
# Libraries that the host lends (apptainer's --nv and the like) come last.
LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}/.singularity.d/libs"
PS1="${PS1:-Apptainer> }"
export LD_LIBRARY_PATH PS1
`
	envRuntime = `#!/bin/sh
# What the user gave for PATH on the command line wins.
if [ -n "${SING_USER_DEFINED_PREPEND_PATH:-}" ]; then
    PATH="${SING_USER_DEFINED_PREPEND_PATH}:${PATH}"
fi
if [ -n "${SING_USER_DEFINED_APPEND_PATH:-}" ]; then
    PATH="${PATH}:${SING_USER_DEFINED_APPEND_PATH}"
fi
if [ -n "${SING_USER_DEFINED_PATH:-}" ]; then
    PATH="${SING_USER_DEFINED_PATH}"
fi
unset SING_USER_DEFINED_PREPEND_PATH SING_USER_DEFINED_APPEND_PATH SING_USER_DEFINED_PATH
export PATH
`
)

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// envScript sets the image's environment where the user has not set it. PATH is always the image's.
func envScript(env []string) string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\n")
	for _, e := range env {
		name, value, ok := strings.Cut(e, "=")
		switch {
		case !envName.MatchString(name) || strings.ContainsRune(value, 0):
		case !ok:
			fmt.Fprintf(&b, "export %s=\"${%s:-}\"\n", name, name)
		case name == "PATH":
			fmt.Fprintf(&b, "export PATH=\"%s\"\n", escapeDouble(value))
		default:
			fmt.Fprintf(&b, "export %s=\"${%s:-\"%s\"}\"\n", name, name, escapeDouble(value))
		}
	}
	return b.String()
}

// runScript starts what the image's config says: its entry point with the user's arguments, or else with those of the config. The
// line with eval makes apptainer interpret the script itself.
func runScript(c v1.Config) string {
	var b strings.Builder
	fmt.Fprintf(&b, "#!/bin/sh\nOCI_ENTRYPOINT=%s\nOCI_CMD=%s\n", quoteSingle(quoteWords(c.Entrypoint, quoteDouble)), quoteSingle(quoteWords(c.Cmd, quoteDouble)))
	b.WriteString("\n# As OCI runtimes do it: word for word.\nif [ -n \"$SINGULARITY_NO_EVAL\" ]; then\n")
	if len(c.Cmd) > 0 {
		fmt.Fprintf(&b, "    if [ $# -eq 0 ]; then\n        set -- %s\n    fi\n", quoteWords(c.Cmd, quoteSingle))
	}
	if len(c.Entrypoint) > 0 {
		fmt.Fprintf(&b, "    set -- %s \"$@\"\n", quoteWords(c.Entrypoint, quoteSingle))
	}
	b.WriteString("    exec \"$@\"\nfi\n")
	if len(c.Entrypoint) == 0 && len(c.Cmd) == 0 {
		b.WriteString("\nif [ $# -eq 0 ]; then\n    echo \"this image names no program to run\" >&2\n    exit 1\nfi\n")
	}
	b.WriteString(runTail)
	return b.String()
}

const runTail = `
# As apptainer does it: all words go through the shell once more.
CMDLINE_ARGS=""
for arg in "$@"; do
    CMDLINE_ARGS="${CMDLINE_ARGS} \"$arg\""
done
if [ $# -gt 0 ]; then
    SINGULARITY_OCI_RUN="${OCI_ENTRYPOINT} ${CMDLINE_ARGS}"
else
    SINGULARITY_OCI_RUN="${OCI_ENTRYPOINT} ${OCI_CMD}"
fi
eval "set ${SINGULARITY_OCI_RUN}"
exec "$@"
`

func quoteWords(words []string, quote func(string) string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = quote(strings.ReplaceAll(w, "\x00", ""))
	}
	return strings.Join(out, " ")
}

// escapeDouble makes s stand for itself between double quotes in a shell.
func escapeDouble(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", `$`, `\$`).Replace(s)
}

func quoteDouble(s string) string { return `"` + escapeDouble(s) + `"` }

// quoteSingle makes s one word that a shell takes as it is.
func quoteSingle(s string) string { return "'" + strings.ReplaceAll(s, "'", `'"'"'`) + "'" }

package index_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/index"
	"golang.org/x/mod/sumdb/note"
)

const repoName = "images.example.org"

// keyPair is a key of a repository.
type keyPair struct {
	signer   note.Signer
	verifier note.Verifier
	public   string
}

func newKey(t testing.TB, name string) keyPair {
	t.Helper()
	secret, public, err := index.GenerateKey(name)
	if err != nil {
		t.Fatal(err)
	}
	s, err := index.ParseSigner(secret + "\n")
	if err != nil {
		t.Fatal(err)
	}
	v, err := index.ParseVerifier(public + "\n")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := index.SignerVerifier(secret); got != public || err != nil {
		t.Fatalf("SignerVerifier = %q, %v, want %q", got, err, public)
	}
	return keyPair{s, v, public}
}

// resign signs text as it is, with any key.
func resign(t testing.TB, text string, keys ...keyPair) []byte {
	t.Helper()
	var signers []note.Signer
	for _, k := range keys {
		signers = append(signers, k.signer)
	}
	b, err := note.Sign(&note.Note{Text: text}, signers...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// signature returns the lines of a note's signatures.
func signature(b []byte) []byte { return b[len(textOf(b))+1:] }

func textOf(b []byte) string { return string(b[:strings.LastIndex(string(b), "\n\n")+1]) }

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

func sampleManifest() *index.Manifest {
	return &index.Manifest{Name: repoName, Revision: 12, Root: index.CatalogRef{Digest: index.DigestOf([]byte("root")), Size: 4711}, Next: 57,
		Time: noon, TTL: 4 * time.Minute, Retention: 30 * 24 * time.Hour}
}

func sampleWhitelist(keys ...keyPair) *index.Whitelist {
	w := &index.Whitelist{Name: repoName, Time: noon, Expires: noon.AddDate(0, 0, 30)}
	for _, k := range keys {
		w.Keys = append(w.Keys, k.public)
	}
	return w
}

func TestManifestRoundTrip(t *testing.T) {
	master, key := newKey(t, repoName), newKey(t, repoName)
	w := sampleWhitelist(key)
	w.RevokedKeys = []string{newKey(t, repoName).public}
	w.RevokedRoots = []index.Digest{index.DigestOf([]byte("a")), index.DigestOf([]byte("b"))}
	w.MinimumRevision = 12
	wb, err := w.Sign(master.signer)
	if err != nil {
		t.Fatal(err)
	}
	gotW, err := index.OpenWhitelist(wb, repoName, master.verifier)
	if err != nil || !reflect.DeepEqual(gotW, w) {
		t.Fatalf("OpenWhitelist = %+v, %v, want %+v", gotW, err, w)
	}
	m := sampleManifest()
	b, err := m.Sign(key.signer)
	if err != nil {
		t.Fatal(err)
	}
	got, err := index.OpenManifest(b, repoName, gotW)
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Fatalf("OpenManifest = %+v, %v, want %+v", got, err, m)
	}
	if name, err := index.ManifestName(b); name != repoName || err != nil {
		t.Fatalf("ManifestName = %q, %v", name, err)
	}
	m.Time, m.TTL = noon.Add(time.Millisecond).In(time.FixedZone("", 3600)), m.TTL+time.Millisecond
	if again, err := m.Sign(key.signer); string(again) != string(b) || err != nil {
		t.Errorf("fractions of a second and a time zone change the text: %s, %v", again, err)
	}
}

// Each row changes one thing about a manifest that would be accepted.
func TestOpenManifestRefuses(t *testing.T) {
	key, second, revoked, stranger, foreign := newKey(t, repoName), newKey(t, repoName), newKey(t, repoName), newKey(t, repoName), newKey(t, "other.example.org")
	good, err := sampleManifest().Sign(key.signer)
	if err != nil {
		t.Fatal(err)
	}
	text := textOf(good)
	edit := func(old, new string) []byte {
		if !strings.Contains(text, old) {
			t.Fatalf("%q is not in the manifest", old)
		}
		return resign(t, strings.Replace(text, old, new, 1), key)
	}
	root := sampleManifest().Root.Digest
	for _, row := range []struct {
		name string
		b    []byte
		w    func(w *index.Whitelist)
		want error // nil: accepted
		says string
	}{
		{"as it was signed", good, nil, nil, ""},
		{"two signatures, one of a stranger", resign(t, text, stranger, key), nil, nil, ""},
		{"two signatures, a stranger's is of another text", append(append([]byte{}, good...), signature(resign(t, "x\n", stranger))...), nil, nil, ""},
		{"two signatures, a listed key's is of another text", append(append([]byte{}, good...), signature(resign(t, "x\n", second))...), nil, index.ErrSignature, "invalid signature"},
		{"ends of lines as DOS has them", resign(t, strings.ReplaceAll(text, "\n", "\r\n"), key), nil, index.ErrFormat, "not a signed note"},
		{"a NUL", edit("name images", "name \x00images"), nil, index.ErrFormat, "not a signed note"},
		{"not UTF-8", edit("name images", "name \xffimages"), nil, index.ErrFormat, "not a signed note"},
		{"two spaces", edit("revision 12", "revision  12"), nil, index.ErrFormat, "line 3"},
		{"space at the end", edit("revision 12", "revision 12 "), nil, index.ErrFormat, "line 3"},
		{"a signature line in the text", resign(t, text+string(signature(good))+"\n"+text, stranger), nil, index.ErrFormat, "empty"},
		{"a whitelist", resign(t, strings.Replace(text, "manifest v1", "whitelist v1", 1), key), nil, index.ErrFormat, "line 1"},
		{"a time when the whitelist has ended", edit("2026-11-28T12", "2026-12-28T12"), nil, index.ErrExpired, "the whitelist ends at 2026-12-28"},
		{"the second before", edit("2026-11-28T12:00:00", "2026-12-28T11:59:59"), nil, nil, ""},
		{"two signatures, one of a revoked key", resign(t, text, revoked, key), nil, nil, ""},
		{"lines of a later version", resign(t, text+"colour blue\nshape\n", key), nil, nil, ""},
		{"minimum revision reached", good, func(w *index.Whitelist) { w.MinimumRevision = 12 }, nil, ""},
		{"nothing", nil, nil, index.ErrFormat, "not a signed note"},
		{"no signature", []byte(text), nil, index.ErrFormat, "not a signed note"},
		{"too long", append(append([]byte{}, good...), make([]byte, index.MaxNote)...), nil, index.ErrFormat, "limit"},
		{"a byte changed after signing", []byte(strings.Replace(string(good), "next 57", "next 58", 1)), nil, index.ErrSignature, "invalid signature"},
		{"unknown key", resign(t, text, stranger), nil, index.ErrSignature, fmt.Sprintf("%08x", stranger.verifier.KeyHash())},
		{"key of another repository", resign(t, text, foreign), nil, index.ErrSignature, "other.example.org"},
		{"revoked key", resign(t, text, revoked), nil, index.ErrRevoked, fmt.Sprintf("%08x", revoked.verifier.KeyHash())},
		{"key listed and revoked", good, func(w *index.Whitelist) { w.RevokedKeys = append(w.RevokedKeys, key.public+"\n") }, index.ErrRevoked, "revokes"},
		{"whitelist of another repository", good, func(w *index.Whitelist) { w.Name = "other.example.org" }, index.ErrSignature, "other.example.org"},
		{"another name", edit("name images.", "name imageS."), nil, index.ErrFormat, "lower-case"},
		{"a valid name, not the one asked for", edit("name images.", "name image."), nil, index.ErrSignature, "image.example.org"},
		{"root revoked", good, func(w *index.Whitelist) { w.RevokedRoots = []index.Digest{root} }, index.ErrRevoked, root.String()},
		{"revision below the minimum", good, func(w *index.Whitelist) { w.MinimumRevision = 13 }, index.ErrRevoked, "minimum 13"},
		{"unknown feature", edit("retention 2592000\n", "retention 2592000\nrequires time-travel\n"), nil, index.ErrFormat, "time-travel"},
		{"features out of order", edit("retention 2592000\n", "retention 2592000\nrequires b,a\n"), nil, index.ErrFormat, "line 9"},
		{"wrong title", edit("manifest v1", "manifest v2"), nil, index.ErrFormat, "line 1"},
		{"revision zero", edit("revision 12", "revision 0"), nil, index.ErrFormat, "line 3"},
		{"leading zero", edit("revision 12", "revision 012"), nil, index.ErrFormat, "line 3"},
		{"sign", edit("revision 12", "revision +12"), nil, index.ErrFormat, "line 3"},
		{"revision of 65 bits", edit("revision 12", "revision 18446744073709551616"), nil, index.ErrFormat, "line 3"},
		{"second revision", edit("next 57\n", "revision 13\n"), nil, index.ErrFormat, `"next"`},
		{"second revision at the end", resign(t, text+"revision 13\n", key), nil, index.ErrFormat, "second"},
		{"line missing", edit("time 2026-11-28T12:00:00Z\n", ""), nil, index.ErrFormat, `"time"`},
		{"empty line", edit("next 57\n", "next 57\n\n"), nil, index.ErrFormat, "empty"},
		{"ends early", edit("ttl 240\nretention 2592000\n", ""), nil, index.ErrFormat, `"ttl"`},
		{"root without size", edit(" 4711", ""), nil, index.ErrFormat, "line 4"},
		{"root too large", edit(" 4711", " 99999999999"), nil, index.ErrFormat, "line 4"},
		{"root in capitals", edit("sha256:", "SHA256:"), nil, index.ErrFormat, "line 4"},
		{"next is the root's number", edit("next 57", "next 1"), nil, index.ErrFormat, "line 5"},
		{"next of 33 bits", edit("next 57", "next 4294967296"), nil, index.ErrFormat, "line 5"},
		{"local time", edit("12:00:00Z", "12:00:00+01:00"), nil, index.ErrFormat, "line 6"},
		{"no such day", edit("11-28", "11-31"), nil, index.ErrFormat, "line 6"},
		{"ttl zero", edit("ttl 240", "ttl 0"), nil, index.ErrFormat, "line 7"},
		{"retention overflows", edit("retention 2592000", "retention 9999999999999"), nil, index.ErrFormat, "line 8"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w := sampleWhitelist(second, key)
			w.RevokedKeys = []string{revoked.public}
			if row.w != nil {
				row.w(w)
			}
			m, err := index.OpenManifest(row.b, repoName, w)
			if !errors.Is(err, row.want) || (m == nil) != (row.want != nil) {
				t.Fatalf("OpenManifest = %v, %v, want %v", m, err, row.want)
			}
			if err != nil && !strings.Contains(err.Error(), row.says) {
				t.Errorf("error %q does not say %q", err, row.says)
			}
		})
	}
}

func TestOpenWhitelistRefuses(t *testing.T) {
	master, key, other := newKey(t, repoName), newKey(t, repoName), newKey(t, repoName)
	foreign := newKey(t, "other.example.org")
	good, err := sampleWhitelist(key).Sign(master.signer)
	if err != nil {
		t.Fatal(err)
	}
	text := textOf(good)
	add := func(lines string) []byte { return resign(t, text+lines, master) }
	for _, row := range []struct {
		name string
		b    []byte
		want error
		says string
	}{
		{"as it was signed", good, nil, ""},
		{"signed by a key it lists", resign(t, text, key), index.ErrSignature, fmt.Sprintf("%08x", key.verifier.KeyHash())},
		{"a byte changed after signing", []byte(strings.Replace(string(good), "12-28", "12-29", 1)), index.ErrSignature, "invalid signature"},
		{"a valid name, not the one asked for", resign(t, strings.Replace(text, "name images", "name image", 1), master), index.ErrFormat, "a key of"},
		{"no keys", resign(t, text[:strings.Index(text, "key ")], master), index.ErrFormat, `"key"`},
		{"the same key twice", add("key " + key.public + "\n"), index.ErrFormat, "second key"},
		{"key of another repository", add("key " + foreign.public + "\n"), index.ErrFormat, "other.example.org"},
		{"a damaged key", add("key " + other.public + "x\n"), index.ErrFormat, "public key"},
		{"spaces before a key", add("key  " + other.public + "\n"), index.ErrFormat, "spaces"},
		{"keys after revocations", add("minimum-revision 3\nkey " + other.public + "\n"), index.ErrFormat, "belong"},
		{"unknown line", add("colour blue\n"), index.ErrFormat, "colour"},
		{"root revoked twice", add(strings.Repeat("revoked-root "+index.DigestOf(nil).String()+"\n", 2)), index.ErrFormat, "twice"},
		{"minimum of zero", add("minimum-revision 0\n"), index.ErrFormat, "line 6"},
		{"expires before it begins", resign(t, strings.Replace(text, "2026-12-28", "2026-11-27", 1), master), index.ErrFormat, "begins"},
	} {
		t.Run(row.name, func(t *testing.T) {
			w, err := index.OpenWhitelist(row.b, repoName, master.verifier)
			if !errors.Is(err, row.want) || (w == nil) != (row.want != nil) {
				t.Fatalf("OpenWhitelist = %v, %v, want %v", w, err, row.want)
			}
			if err != nil && !strings.Contains(err.Error(), row.says) {
				t.Errorf("error %q does not say %q", err, row.says)
			}
		})
	}
	if _, err := index.OpenWhitelist(good, "other.example.org", foreign.verifier); !errors.Is(err, index.ErrSignature) {
		t.Errorf("whitelist of another repository: %v", err)
	}
	if _, err := sampleWhitelist(key).Sign(foreign.signer); !errors.Is(err, index.ErrSignature) {
		t.Errorf("signing with another repository's key: %v", err)
	}
	if _, err := sampleWhitelist().Sign(master.signer); !errors.Is(err, index.ErrFormat) {
		t.Errorf("signing a whitelist without keys: %v", err)
	}
}

func TestWhitelistTime(t *testing.T) {
	w := sampleWhitelist()
	for _, row := range []struct {
		name string
		now  time.Time
		ok   bool
	}{
		{"a clock far behind", noon.Add(-index.ClockTolerance - time.Second), false},
		{"a clock a little behind", noon.Add(-index.ClockTolerance), true},
		{"at its time", noon, true},
		{"at its last second", w.Expires.Add(-time.Second), true},
		{"expired", w.Expires, false},
	} {
		if err := w.CheckTime(row.now); (err == nil) != row.ok || err != nil && !errors.Is(err, index.ErrExpired) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

func TestValidName(t *testing.T) {
	long := strings.Repeat("a", 63)
	for name, ok := range map[string]bool{
		"images.example.org": true, "a.b": true, "a-1.b2": true, "1.2": true, long + ".a": true,
		"": false, "images": false, "images.": false, ".images": false, "a..b": false, "A.b": false, "a_b.c": false, "-a.b": false, "a-.b": false,
		"a.b ": false, "a.b\n": false, "ä.b": false, long + "a.b": false, strings.Repeat(long+".", 4) + "a": false, "a/b.c": false, "a.b+c": false,
	} {
		if err := index.ValidName(name); (err == nil) != ok {
			t.Errorf("ValidName(%q) = %v, want ok %v", name, err, ok)
		}
	}
}

func TestKeyTexts(t *testing.T) {
	secret, public, err := index.GenerateKey(repoName)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty": "\n", "secret for public": secret, "truncated": public[:len(public)-4], "long": public + strings.Repeat("a", 1000),
		"line break": public[:len(public)-4] + "\n" + public[len(public)-4:], "other name": "x" + public, "bad name": strings.Replace(public, repoName, "images", 1),
	} {
		if _, err := index.ParseVerifier(text); !errors.Is(err, index.ErrFormat) || strings.Contains(fmt.Sprint(err), "PRIVATE") {
			t.Errorf("public key, %s: %v", name, err)
		}
	}
	seed := strings.SplitN(secret, "+", 5)[4][8:]
	for upper := ""; upper == ""; {
		_, p, _ := index.GenerateKey(repoName)
		hash := strings.Split(p, "+")[1]
		if upper = strings.ToUpper(hash); upper == hash {
			upper = ""
		} else if _, err := index.ParseVerifier(strings.Replace(p, hash, upper, 1)); !errors.Is(err, index.ErrFormat) {
			t.Errorf("public key with its hash in capitals: %v", err)
		}
	}
	for name, text := range map[string]string{"empty": "", "public for secret": public, "truncated": secret[:len(secret)-4], "other name": strings.Replace(secret, "images", "image", 1)} {
		_, err := index.ParseSigner(text)
		if !errors.Is(err, index.ErrFormat) || strings.Contains(err.Error(), seed[:8]) {
			t.Errorf("secret key, %s: %v", name, err)
		}
	}
	if _, _, err := index.GenerateKey("Images"); !errors.Is(err, index.ErrFormat) {
		t.Errorf("GenerateKey of a bad name: %v", err)
	}
	if id := index.KeyID(public + "\n"); len(id) != 16 || id != index.KeyID(public) {
		t.Errorf("KeyID = %q", id)
	}
}

// trySign signs any text, if a note can hold it.
func trySign(text string, key keyPair) ([]byte, bool) {
	b, err := note.Sign(&note.Note{Text: text}, key.signer)
	return b, err == nil
}

package publishd_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/skimfs/skimfs/publishd"
)

func FuzzParseRecipe(f *testing.F) {
	for _, s := range []string{"version: 1\ninput: [debian:12]", "version: 1\nbare: true\ninput:\n  - docker://r.example.org/a/b:1.*\n", "version: 2", "input: &a [*a]", "---\n---\n", "version: 1\ninput: ['a:[']"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := publishd.ParseRecipe([]byte(text))
		if err == nil && len(r.Input) == 0 {
			t.Errorf("%q is a recipe of nothing", text)
		}
	})
}

// What is let in was written by NewToken or looks as if: a name, a scope, a digest.
func FuzzParseTokens(f *testing.F) {
	_, line, err := publishd.NewToken("bee", publishd.ScopeSubmit)
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{line, "# none\n\n" + line + " # hers", "a read sha256:", "a root sha256:" + strings.Repeat("0", 64), "a:b read sha256:" + strings.Repeat("0", 64)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tokens, err := publishd.ParseTokens(strings.NewReader(text))
		if err != nil && len(tokens) > 0 {
			t.Errorf("%q: %d tokens beside %v", text, len(tokens), err)
		}
		for _, token := range tokens {
			if token.Name == "" || strings.ContainsAny(token.Name, " :#\n") {
				t.Errorf("%q lets in %q", text, token.Name)
			}
		}
	})
}

// Whatever is posted, the answer is an operation or a problem with a reason of the list.
func FuzzRequestBody(f *testing.F) {
	secret, line, err := publishd.NewToken("fuzz", publishd.ScopeAdmin)
	if err != nil {
		f.Fatal(err)
	}
	tokens, err := publishd.ParseTokens(strings.NewReader(line))
	if err != nil {
		f.Fatal(err)
	}
	// It does not run, so nothing is converted; and takes one job, so that it does not grow.
	d, err := publishd.Open(f.Context(), publishd.Config{State: f.TempDir(), Repo: f.TempDir(), MaxQueue: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(d.Close)
	handler := d.Handler(tokens)
	verbs := []string{"convert", "build", "convertMany", "prefetch"}
	for i, s := range []string{`{"source":"debian:12","as":"a/b:1","platform":"linux/arm64","priority":9,"deadline":"1h","labels":{"a":"b"}}`, `{"source":"/c","as":"a/b:1","file":"../F","args":{"A":"1"}}`, `{"source":"version: 1\ninput: [a:1]"}`,
		`{"source":"images.example.org/a/b:1"}`, `{"source":"dir:/etc"}`, `{"kind":"build","source":"x"}`, `{"source":7}`, `[`, `{"source":"a","x":1}`, `{"priority":-1e99,"source":"a"}`} {
		f.Add(uint8(i), s)
	}
	f.Fuzz(func(t *testing.T, verb uint8, body string) {
		r := httptest.NewRequest(http.MethodPost, "/v1/images:"+verbs[int(verb)%len(verbs)], strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+secret)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code == http.StatusAccepted {
			return
		}
		var p publishd.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code < 400 || w.Code >= 500 || !slices.Contains(publishd.Reasons, p.Reason) {
			t.Errorf("%s %q: status %d, %s", verbs[int(verb)%len(verbs)], body, w.Code, w.Body)
		}
	})
}

func FuzzParseEventID(f *testing.F) {
	for _, s := range []string{"1.0", "18446744073709551615.1", "7", "", "1.-1", "1.0.0", "+1.2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id, err := publishd.ParseEventID(text)
		if err != nil {
			return
		}
		if again, err := publishd.ParseEventID(id.String()); err != nil || !again.Equal(id) {
			t.Errorf("%q is %v and then %v, %v", text, id, again, err)
		}
	})
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"120", "-1", "Fri, 31 Dec 2027 23:59:59 GMT", "99999999999", "soon"} {
		f.Add(s)
	}
	now := time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		if d := publishd.RetryAfter(text, now); d < 0 || d > time.Hour {
			t.Errorf("%q is %v", text, d)
		}
	})
}

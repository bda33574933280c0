package logfile

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/legion-swarm/legion/api"
)

func open(t testing.TB, driver string, opts map[string]string, attrs map[string]string) *Log {
	t.Helper()
	o, err := Parse(driver, opts)
	if err != nil {
		t.Fatal(err)
	}
	l := New(filepath.Join(t.TempDir(), "log"), o, attrs)
	if err := l.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func at(n int) time.Time { return time.Unix(1_700_000_000, int64(n)).UTC() }

func put(t testing.TB, l *Log, from, to int) {
	t.Helper()
	for n := from; n < to; n++ {
		if err := l.Append(Message{Stream: []string{"stdout", "stderr"}[n%2], At: at(n), Line: fmt.Appendf(nil, "line %d", n)}); err != nil {
			t.Fatal(err)
		}
	}
}

func read(t testing.TB, l *Log, o ReadOptions) []string {
	t.Helper()
	var got []string
	err := l.Read(t.Context(), o, func(m Message) error {
		got = append(got, string(m.Line))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func lines(from, to int) []string {
	var s []string
	for n := from; n < to; n++ {
		s = append(s, fmt.Sprintf("line %d", n))
	}
	return s
}

func each(t *testing.T, f func(t *testing.T, driver string)) {
	for _, d := range []string{JSONFile, Local} {
		t.Run(d, func(t *testing.T) { f(t, d) })
	}
}

func TestReadBack(t *testing.T) {
	each(t, func(t *testing.T, driver string) {
		l := open(t, driver, nil, map[string]string{"k": "v"})
		put(t, l, 0, 100)
		for _, c := range []struct {
			o    ReadOptions
			want []string
		}{
			{ReadOptions{Tail: -1}, lines(0, 100)}, {ReadOptions{Tail: 0}, nil}, {ReadOptions{Tail: 1}, lines(99, 100)},
			{ReadOptions{Tail: 99}, lines(1, 100)}, {ReadOptions{Tail: 100}, lines(0, 100)}, {ReadOptions{Tail: 1000}, lines(0, 100)},
			{ReadOptions{Tail: -1, Since: at(90)}, lines(90, 100)}, {ReadOptions{Tail: -1, Until: at(5)}, lines(0, 6)},
			{ReadOptions{Tail: 20, Since: at(70), Until: at(85)}, lines(80, 86)},
		} {
			if got := read(t, l, c.o); !slices.Equal(got, c.want) {
				t.Errorf("%+v: %d lines %.60q, want %d", c.o, len(got), got, len(c.want))
			}
		}
		err := l.Read(t.Context(), ReadOptions{Tail: 1}, func(m Message) error {
			if m.Attrs["k"] != "v" || m.Stream != "stderr" || !m.At.Equal(at(99)) || m.Partial {
				t.Errorf("%+v", m)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestFormatIsDocker(t *testing.T) {
	l := open(t, JSONFile, nil, map[string]string{"a": "b"})
	ms := []Message{
		{Stream: "stdout", At: at(0), Line: []byte("x <\"&\\\t\x01\xff\u2028é")},
		{Stream: "stderr", At: at(1), Line: []byte("part"), Partial: true},
	}
	if err := l.Append(ms...); err != nil {
		t.Fatal(err)
	}
	want := `{"log":"x \u003c\"\u0026\\\t\u0001\ufffd\u2028é\n","stream":"stdout","attrs":{"a":"b"},"time":"2023-11-14T22:13:20Z"}` + "\n" +
		`{"log":"part","stream":"stderr","attrs":{"a":"b"},"time":"2023-11-14T22:13:20.000000001Z"}` + "\n"
	b, err := os.ReadFile(l.Path())
	want = strings.ReplaceAll(want, `\u003c`, `\u003c`)
	if err != nil || string(b) != want {
		t.Errorf("%s\nwant %s\n%v", b, want, err)
	}
	if got := read(t, l, ReadOptions{Tail: -1}); got[0] != "x <\"&\\\t\x01\ufffd\u2028é" {
		t.Errorf("%q", got)
	}
}

func TestRotation(t *testing.T) {
	each(t, func(t *testing.T, driver string) {
		for _, compress := range []string{"false", "true"} {
			l := open(t, driver, map[string]string{"max-size": "1k", "max-file": "3", "compress": compress}, nil)
			put(t, l, 0, 1000)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			got := read(t, l, ReadOptions{Tail: -1})
			if len(got) < 20 || len(got) > 200 || !slices.Equal(got, lines(1000-len(got), 1000)) {
				t.Errorf("compress %s: %d lines, from %s", compress, len(got), got[0])
			}
			if tail := read(t, l, ReadOptions{Tail: len(got) - 3}); !slices.Equal(tail, got[3:]) {
				t.Errorf("compress %s: tail over files: %d lines", compress, len(tail))
			}
			files, _ := filepath.Glob(l.Path() + "*")
			want := []string{l.Path(), l.Path() + ".1", l.Path() + ".2"}
			if compress == "true" {
				want = []string{l.Path(), l.Path() + ".1.gz", l.Path() + ".2.gz"}
			}
			if !slices.Equal(files, want) {
				t.Errorf("files %v", files)
			}
			if l.Size() == 0 || l.Size() > 8<<10 {
				t.Errorf("size %d", l.Size())
			}
		}
	})
}

// Followers lose nothing while files are rotated under them, as long as they
// keep up.
func TestFollow(t *testing.T) {
	each(t, func(t *testing.T, driver string) {
		l := open(t, driver, map[string]string{"max-size": "2k", "max-file": "200"}, nil)
		written := 10
		put(t, l, 0, written)
		var wg sync.WaitGroup
		var last atomic.Int64
		for _, tail := range []int{-1, 5, 0} {
			got := make(chan string, 10_000)
			ready := make(chan struct{})
			var once sync.Once
			wg.Go(func() {
				defer close(got)
				err := l.Read(context.Background(), ReadOptions{Tail: tail, Follow: true}, func(m Message) error {
					got <- string(m.Line)
					once.Do(func() { close(ready) })
					return nil
				})
				if err != nil {
					t.Error(err)
				}
			})
			// One without a tail sees nothing until there is more.
			for waiting := true; waiting; {
				select {
				case <-ready:
					waiting = false
				default:
					if tail == 0 {
						put(t, l, written, written+1)
						written++
					}
					runtime.Gosched()
				}
			}
			wg.Go(func() {
				var all []string
				for s := range got {
					all = append(all, s)
				}
				if len(all) == 0 {
					t.Errorf("tail %d: nothing", tail)
					return
				}
				var first int
				if _, err := fmt.Sscanf(all[0], "line %d", &first); err != nil || !slices.Equal(all, lines(first, int(last.Load()))) {
					t.Errorf("tail %d: %d lines from %q to %q", tail, len(all), all[0], all[len(all)-1])
				}
				if want := map[int]int{-1: 0, 5: 5}[tail]; tail != 0 && first != want {
					t.Errorf("tail %d begins at %d", tail, first)
				}
			})
		}
		last.Store(int64(written) + 2000)
		put(t, l, written, written+2000)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
}

func TestFollowEnds(t *testing.T) {
	l := open(t, JSONFile, nil, nil)
	put(t, l, 0, 1)
	ctx, cancel := context.WithCancel(t.Context())
	if err := l.Read(ctx, ReadOptions{Tail: -1, Follow: true}, func(Message) error { cancel(); return nil }); err != context.Canceled { //nolint:errorlint // its own error
		t.Error(err)
	}
	if err := l.Read(t.Context(), ReadOptions{Tail: -1, Follow: true, Until: time.Now().Add(20 * time.Millisecond)}, func(Message) error { return nil }); err != nil {
		t.Error(err)
	}
}

// What a killed daemon left half-written is not read, and is gone once the log
// is opened again.
func TestTornEnd(t *testing.T) {
	each(t, func(t *testing.T, driver string) {
		l := open(t, driver, nil, nil)
		put(t, l, 0, 50)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		whole, err := os.ReadFile(l.Path())
		if err != nil {
			t.Fatal(err)
		}
		for cut := 1; cut < 70; cut++ {
			if err := os.WriteFile(l.Path(), whole[:len(whole)-cut], 0o600); err != nil {
				t.Fatal(err)
			}
			got := read(t, l, ReadOptions{Tail: -1})
			if !slices.Equal(got, lines(0, len(got))) || len(got) < 46 || len(got) > 49 {
				t.Fatalf("cut %d: %d lines", cut, len(got))
			}
			if tail := read(t, l, ReadOptions{Tail: 2}); !slices.Equal(tail, got[len(got)-2:]) {
				t.Fatalf("cut %d: tail %v", cut, tail)
			}
			if err := l.Open(); err != nil {
				t.Fatal(err)
			}
			put(t, l, len(got), 60)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if got := read(t, l, ReadOptions{Tail: -1}); !slices.Equal(got, lines(0, 60)) {
				t.Fatalf("cut %d: %d lines after it was opened again", cut, len(got))
			}
		}
	})
}

func TestNonBlocking(t *testing.T) {
	l := open(t, JSONFile, map[string]string{"mode": "non-blocking", "max-buffer-size": "1m"}, nil)
	put(t, l, 0, 100)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, l, ReadOptions{Tail: -1}); !slices.Equal(got, lines(0, 100)) {
		t.Errorf("%d lines", len(got))
	}
}

func TestNone(t *testing.T) {
	l := open(t, None, nil, nil)
	put(t, l, 0, 1)
	err := l.Read(t.Context(), ReadOptions{}, nil)
	if !api.Is(err, api.Unimplemented) || err.Error() != "configured logging driver does not support reading" {
		t.Error(err)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct {
		driver string
		opts   map[string]string
		says   string
	}{
		{"syslog", nil, "no log driver named 'syslog'"}, {JSONFile, map[string]string{"max-sise": "1"}, "unknown log opt 'max-sise'"},
		{JSONFile, map[string]string{"max-size": "big"}, "max-size"}, {JSONFile, map[string]string{"max-file": "0"}, "max-file"},
		{JSONFile, map[string]string{"compress": "true"}, "compress cannot be true"}, {JSONFile, map[string]string{"compress": "perhaps"}, "compress"},
		{JSONFile, map[string]string{"env-regex": "("}, "env-regex"}, {Local, map[string]string{"mode": "fast"}, "mode not supported: fast"},
		{None, map[string]string{"max-size": "1m"}, "unknown log opt"}, {Local, map[string]string{"max-buffer-size": "1m"}, "only supported with"},
	} {
		if _, err := Parse(c.driver, c.opts); !api.Is(err, api.Invalid) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %v: %v", c.driver, c.opts, err)
		}
	}
	o, err := Parse(JSONFile, map[string]string{"labels": "a,b", "env-regex": "^X"})
	if err != nil {
		t.Fatal(err)
	}
	a := o.Attributes(map[string]string{"a": "1", "c": "2"}, []string{"X1=y", "Y=z", "X2"})
	if len(a) != 2 || a["a"] != "1" || a["X1"] != "y" {
		t.Error(a)
	}
}

func FuzzDecode(f *testing.F) {
	for _, d := range []codec{newJSONCodec(map[string]string{"a": "b"}), &localCodec{}} {
		var b []byte
		for n := range 3 {
			b = d.append(b, &Message{Stream: "stderr", At: at(n), Line: []byte("text"), Partial: n == 1})
		}
		f.Add(b, 2)
	}
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		for _, c := range []codec{newJSONCodec(nil), &localCodec{}} {
			end, err := c.end(bytes.NewReader(b), int64(len(b)))
			if err != nil || end < 0 || end > int64(len(b)) {
				t.Fatalf("end %d of %d, %v", end, len(b), err)
			}
			off, _, err := c.tail(bytes.NewReader(b), end, n&15)
			if err == nil && (off < 0 || off > end) {
				t.Fatalf("tail at %d of %d", off, end)
			}
			for rest := b; len(rest) > 0; {
				_, k, _ := c.next(rest)
				if k <= 0 {
					break
				}
				rest = rest[k:]
			}
		}
	})
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("hello"), int64(5), true)
	f.Fuzz(func(t *testing.T, line []byte, nano int64, partial bool) {
		line = bytes.ReplaceAll(line, []byte("\n"), nil)
		nano &= 1<<60 - 1
		m := Message{Stream: "stdout", At: time.Unix(0, nano).UTC(), Line: line, Partial: partial}
		for _, c := range []codec{newJSONCodec(nil), &localCodec{}} {
			b := c.append(nil, &m)
			got, n, ok := c.next(b)
			want := line
			if _, js := c.(*jsonCodec); js {
				want = []byte(strings.ToValidUTF8(string(line), "\ufffd"))
				if !bytes.Equal(want, line) {
					want = got.Line // each bad byte has a mark of its own
				}
			}
			if n != len(b) || !ok || !bytes.Equal(got.Line, want) || !got.At.Equal(m.At) || got.Partial != partial {
				t.Fatalf("%q became %+v", line, got)
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, d := range []string{JSONFile, Local} {
		b.Run(d, func(b *testing.B) {
			l := open(b, d, nil, nil)
			ms := make([]Message, 16)
			for i := range ms {
				ms[i] = Message{Stream: "stdout", At: at(i), Line: bytes.Repeat([]byte("x"), 80+rand.IntN(40))}
			}
			b.SetBytes(int64(len(ms) * 100))
			for b.Loop() {
				if err := l.Append(ms...); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkTail(b *testing.B) {
	l := open(b, JSONFile, nil, nil)
	put(b, l, 0, 100_000)
	for b.Loop() {
		if got := read(b, l, ReadOptions{Tail: 10}); len(got) != 10 {
			b.Fatal(len(got))
		}
	}
}

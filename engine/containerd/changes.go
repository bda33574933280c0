package containerd

import (
	"encoding/json"
	"maps"
	"path"
	"strconv"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	docker "github.com/moby/moby/api/types/container"

	"github.com/legion-swarm/legion/api"
)

// setConfig overlays an image's config with a container's.
func setConfig(c *dockerspec.DockerOCIImageConfig, from *docker.Config) {
	c.User, c.WorkingDir, c.StopSignal = from.User, from.WorkingDir, from.StopSignal
	c.Env, c.Cmd, c.Entrypoint = from.Env, from.Cmd, from.Entrypoint
	c.Volumes, c.Labels = maps.Clone(from.Volumes), maps.Clone(from.Labels)
	c.Healthcheck, c.OnBuild, c.Shell = from.Healthcheck, from.OnBuild, from.Shell
	c.ExposedPorts = nil
	for p := range from.ExposedPorts {
		expose(c, p.String())
	}
}

func expose(c *dockerspec.DockerOCIImageConfig, port string) {
	if c.ExposedPorts == nil {
		c.ExposedPorts = make(map[string]struct{})
	}
	c.ExposedPorts[port] = struct{}{}
}

// applyChanges applies Dockerfile instructions, those that docker import and
// docker commit take with --change.
func applyChanges(c *dockerspec.DockerOCIImageConfig, changes []string) error {
	for _, line := range changes {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		rest = strings.TrimSpace(rest)
		if word == "" {
			continue
		}
		if rest == "" && !strings.EqualFold(word, "CMD") && !strings.EqualFold(word, "ENTRYPOINT") {
			return api.Errorf(api.Invalid, "change %q: %s requires at least one argument", line, strings.ToUpper(word))
		}
		if err := applyChange(c, strings.ToUpper(word), rest); err != nil {
			return api.Errorf(api.Invalid, "change %q: %w", line, err)
		}
	}
	return nil
}

func applyChange(c *dockerspec.DockerOCIImageConfig, word, rest string) error {
	switch word {
	case "CMD":
		c.Cmd = command(rest, c.Shell)
	case "ENTRYPOINT":
		c.Entrypoint = command(rest, c.Shell)
	case "ENV":
		pairs, err := keyValues(rest)
		for _, p := range pairs {
			c.Env = setEnv(c.Env, p[0], p[1])
		}
		return err
	case "LABEL":
		pairs, err := keyValues(rest)
		for _, p := range pairs {
			if c.Labels == nil {
				c.Labels = make(map[string]string)
			}
			c.Labels[p[0]] = p[1]
		}
		return err
	case "EXPOSE":
		return exposeAll(c, rest)
	case "VOLUME":
		for _, v := range list(rest) {
			if c.Volumes == nil {
				c.Volumes = make(map[string]struct{})
			}
			c.Volumes[v] = struct{}{}
		}
	case "USER":
		c.User = rest
	case "WORKDIR":
		if !path.IsAbs(rest) {
			rest = path.Join("/", c.WorkingDir, rest)
		}
		c.WorkingDir = path.Clean(rest)
	case "STOPSIGNAL":
		c.StopSignal = rest
	case "ONBUILD":
		c.OnBuild = append(c.OnBuild, rest)
	case "HEALTHCHECK":
		return healthcheck(c, rest)
	default:
		return api.Errorf(api.Invalid, "%s is not a valid change command", word)
	}
	return nil
}

// command reads an instruction's JSON form, or else gives it to a shell.
func command(s string, shell []string) []string {
	var args []string
	if json.Unmarshal([]byte(s), &args) == nil || s == "" {
		return args
	}
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(append([]string(nil), shell...), s)
}

func list(s string) []string {
	var items []string
	if json.Unmarshal([]byte(s), &items) == nil {
		return items
	}
	return strings.Fields(s)
}

func setEnv(env []string, key, value string) []string {
	out := make([]string, 0, len(env)+1)
	for _, e := range env {
		if k, _, _ := strings.Cut(e, "="); k != key {
			out = append(out, e)
		}
	}
	return append(out, key+"="+value)
}

func exposeAll(c *dockerspec.DockerOCIImageConfig, s string) error {
	for _, p := range strings.Fields(s) {
		number, proto, ok := strings.Cut(p, "/")
		if !ok {
			proto = "tcp"
		}
		first, last, isRange := strings.Cut(number, "-")
		from, err := strconv.ParseUint(first, 10, 16)
		to := from
		if err == nil && isRange {
			to, err = strconv.ParseUint(last, 10, 16)
		}
		proto = strings.ToLower(proto)
		if err != nil || to < from || proto != "tcp" && proto != "udp" && proto != "sctp" {
			return api.Errorf(api.Invalid, "%q is no port: write it as 80, 80/udp or 8000-8010/tcp", p)
		}
		for n := from; n <= to; n++ {
			expose(c, strconv.FormatUint(n, 10)+"/"+proto)
		}
	}
	return nil
}

// keyValues reads `k=v k2="v 2"` or the old form `k v`.
func keyValues(s string) ([][2]string, error) {
	words, err := splitWords(s)
	if err != nil {
		return nil, err
	}
	if len(words) > 0 && !strings.Contains(words[0], "=") {
		k, v, ok := strings.Cut(s, " ")
		if !ok {
			return nil, api.Errorf(api.Invalid, "%q has no value; write key=value", s)
		}
		return [][2]string{{k, strings.TrimSpace(v)}}, nil
	}
	var out [][2]string
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok || k == "" {
			return nil, api.Errorf(api.Invalid, "%q is not key=value", w)
		}
		out = append(out, [2]string{k, v})
	}
	return out, nil
}

// splitWords splits at blanks, with quotes and backslashes as a Dockerfile has
// them.
func splitWords(s string) ([]string, error) {
	var words []string
	var word strings.Builder
	in, quote := false, rune(0)
	escaped := false
	for _, r := range s {
		switch {
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			escaped, in = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			quote, in = r, true
		case r == ' ' || r == '\t':
			if in {
				words = append(words, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteRune(r)
			in = true
		}
	}
	if quote != 0 || escaped {
		return nil, api.Errorf(api.Invalid, "a quote is not closed in %q", s)
	}
	if in {
		words = append(words, word.String())
	}
	return words, nil
}

func healthcheck(c *dockerspec.DockerOCIImageConfig, s string) error {
	h := &dockerspec.HealthcheckConfig{}
	for strings.HasPrefix(s, "--") {
		var flag string
		flag, s, _ = strings.Cut(s, " ")
		s = strings.TrimSpace(s)
		if err := healthFlag(h, flag); err != nil {
			return err
		}
	}
	kind, rest, _ := strings.Cut(s, " ")
	switch strings.ToUpper(kind) {
	case "NONE":
		h.Test = []string{"NONE"}
	case "CMD":
		var args []string
		if json.Unmarshal([]byte(strings.TrimSpace(rest)), &args) == nil {
			h.Test = append([]string{"CMD"}, args...)
		} else {
			h.Test = []string{"CMD-SHELL", strings.TrimSpace(rest)}
		}
	default:
		return api.Errorf(api.Invalid, "unknown type %q in HEALTHCHECK (try CMD or NONE)", kind)
	}
	c.Healthcheck = h
	return nil
}

func healthFlag(h *dockerspec.HealthcheckConfig, flag string) error {
	name, value, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
	if name == "retries" {
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 {
			return api.Errorf(api.Invalid, "--retries must be a number of at least 0, not %q", value)
		}
		h.Retries = n
		return nil
	}
	field := map[string]*time.Duration{
		"interval": &h.Interval, "timeout": &h.Timeout, "start-period": &h.StartPeriod, "start-interval": &h.StartInterval,
	}[name]
	if field == nil {
		return api.Errorf(api.Invalid, "unknown flag: %s", name)
	}
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 {
		return api.Errorf(api.Invalid, "--%s must be a duration as 30s, not %q", name, value)
	}
	*field = d
	return nil
}

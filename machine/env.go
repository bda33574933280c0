package machine

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// Variable is one that a shell sets; or, without a value, unsets.
type Variable struct{ Name, Value string }

// Variables are what makes a Docker client talk to the machine. Those of an
// earlier machine that would be in the way are unset where they are set.
func Variables(name string, e Endpoint, getenv func(string) string) []Variable {
	if e.CertDir != "" {
		return []Variable{{"DOCKER_TLS_VERIFY", "1"}, {"DOCKER_HOST", e.URL}, {"DOCKER_CERT_PATH", e.CertDir}, {"DOCKER_MACHINE_NAME", name}}
	}
	vars := []Variable{{"DOCKER_HOST", e.URL}, {"DOCKER_MACHINE_NAME", name}}
	for _, v := range []string{"DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_TLS"} {
		if getenv(v) != "" {
			vars = append(vars, Variable{v, ""})
		}
	}
	return vars
}

// Unset are the variables that Variables sets, to be unset.
func Unset() []Variable {
	return []Variable{{Name: "DOCKER_TLS_VERIFY"}, {Name: "DOCKER_HOST"}, {Name: "DOCKER_CERT_PATH"}, {Name: "DOCKER_MACHINE_NAME"}}
}

// WithoutProxy adds the variable that keeps clients from asking a proxy for the
// address.
func WithoutProxy(vars []Variable, address string, getenv func(string) string) []Variable {
	name, value := "NO_PROXY", getenv("NO_PROXY")
	if value == "" && getenv("no_proxy") != "" {
		name, value = "no_proxy", getenv("no_proxy")
	}
	list := strings.FieldsFunc(value, func(r rune) bool { return r == ',' })
	if !slices.Contains(list, address) {
		list = append(list, address)
	}
	return append(vars, Variable{name, strings.Join(list, ",")})
}

// syntax is how a shell says it. The verbs are the name and the value.
type syntax struct {
	set, unset, comment, usage string
	quote                      func(string) string
}

func syntaxes() map[string]syntax {
	posix := syntax{set: "export %s=%s", unset: "unset %s", comment: "# ", usage: "eval $(%s)", quote: quoteDouble}
	csh := syntax{"setenv %s %s;", "unsetenv %s;", ": ", "eval `%s`", quoteDouble}
	return map[string]syntax{
		"bash": posix, "sh": posix, "zsh": posix, "dash": posix, "ksh": posix,
		"fish": {"set -gx %s %s;", "set -e %s;", "# ", "eval (%s)", quoteDouble},
		"csh":  csh, "tcsh": csh,
		"emacs": {`(setenv "%s" %s)`, `(setenv "%s" nil)`, ";; ", "(with-temp-buffer (shell-command %q (current-buffer)) (eval-buffer))", quoteLisp},
		"powershell": {"$Env:%s = %s", `Remove-Item Env:\%s`, "# ", "& %s | Invoke-Expression", func(s string) string {
			return `"` + strings.NewReplacer("`", "``", `"`, "`\"", "$", "`$").Replace(s) + `"`
		}},
		"cmd":  {"SET %s=%s", "SET %s=", "REM ", `@FOR /f "tokens=*" %%i IN ('%s') DO @%%i`, func(s string) string { return s }},
		"none": {"%s=%s", "%s=", "", "", func(s string) string { return s }},
	}
}

// ShellOf is the shell at the path; bash for one that is not known, which
// probably speaks the same.
func ShellOf(path string) string {
	if name := filepath.Base(path); syntaxes()[name].set != "" {
		return name
	}
	return "bash"
}

// Script writes the variables for a shell, by name or path, and in a comment
// how to use it. The command is what the user typed.
func Script(shell string, vars []Variable, command string) (string, error) {
	s, ok := syntaxes()[filepath.Base(shell)]
	if !ok {
		return "", fmt.Errorf("unknown shell %q: give --shell bash, zsh, fish, csh, tcsh, powershell, cmd, emacs or none", shell)
	}
	var b strings.Builder
	for _, v := range vars {
		if v.Value == "" {
			fmt.Fprintf(&b, s.unset+"\n", v.Name)
		} else {
			fmt.Fprintf(&b, s.set+"\n", v.Name, s.quote(v.Value))
		}
	}
	if s.usage != "" {
		fmt.Fprintf(&b, "%sRun this command to configure your shell:\n%s"+s.usage+"\n", s.comment, s.comment, command)
	}
	return b.String(), nil
}

func quoteDouble(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`, "`", "\\`").Replace(s) + `"`
}

func quoteLisp(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// Command prog is the only file in the images of the conformance suites. Its
// first argument says what it does; fakes act the same words out:
//
//	exit N            ends with status N
//	echo WORD...      writes the words and a newline to standard output
//	err WORD...       the same to standard error
//	flood             writes to standard output without end
//	cat               copies standard input to standard output
//	sleep             stays until a signal ends it
//	trap N            writes "ready", stays until SIGTERM and ends with status N
//	write PATH WORD   writes the word to a file
//	read PATH         writes the file to standard output
//	remove PATH       removes the file
//	env NAME          writes the variable to standard output
//	size              writes the terminal's size, "ROWS COLUMNS", at the start and with each change
//	alloc MIB         takes that much memory, then stays
//	fork              starts "sleep" as a child, then stays
//	all ARGS , ARGS   runs the commands one after another
package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) < 2 {
		os.Args = append(os.Args, "sleep")
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(verb string, args []string) error {
	arg := func(n int) string {
		if n < len(args) {
			return args[n]
		}
		return ""
	}
	switch verb {
	case "exit":
		n, err := strconv.Atoi(arg(0))
		if err != nil {
			return err
		}
		os.Exit(n)
	case "echo":
		fmt.Println(strings.Join(args, " "))
	case "err":
		fmt.Fprintln(os.Stderr, strings.Join(args, " "))
	case "flood":
		for b := make([]byte, 4096); ; {
			if _, err := os.Stdout.Write(b); err != nil {
				return err
			}
		}
	case "cat":
		_, err := io.Copy(os.Stdout, os.Stdin)
		return err
	case "sleep":
		return stay()
	case "trap":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM)
		fmt.Println("ready")
		<-c
		return run("exit", args)
	case "write":
		return os.WriteFile(arg(0), []byte(arg(1)), 0o644)
	case "read":
		b, err := os.ReadFile(arg(0))
		fmt.Print(string(b))
		return err
	case "remove":
		return os.Remove(arg(0))
	case "env":
		fmt.Println(os.Getenv(arg(0)))
	case "size":
		return size()
	case "alloc":
		return alloc(arg(0))
	case "fork":
		if err := exec.Command("/prog", "sleep").Start(); err != nil {
			return err
		}
		fmt.Println("ready")
		return stay()
	case "all":
		for len(args) > 0 {
			n := slices.Index(args, ",")
			if n < 0 {
				n = len(args)
			}
			if err := run(args[0], args[1:n]); err != nil {
				return err
			}
			args = args[min(n+1, len(args)):]
		}
	default:
		return fmt.Errorf("prog: unknown command %q", verb)
	}
	return nil
}

// stay never returns; a bare select would be a deadlock to Go's runtime.
func stay() error {
	return unix.Pause()
}

func size() error {
	c := make(chan os.Signal, 8)
	signal.Notify(c, syscall.SIGWINCH)
	for {
		ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ)
		if err != nil {
			return err
		}
		fmt.Printf("%d %d\n", ws.Row, ws.Col)
		<-c
	}
}

func alloc(mib string) error {
	n, err := strconv.Atoi(mib)
	if err != nil {
		return err
	}
	b := make([]byte, n<<20)
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	fmt.Println("ready")
	return stay()
}

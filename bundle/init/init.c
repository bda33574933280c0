/*
 * legion-init: the first process of a container that was asked for with --init.
 *
 *   legion-init [--] PROGRAM [ARGUMENT...]
 *
 * Runs PROGRAM (looked up in PATH as execvp does) in a process group of its
 * own, passes on every signal that it gets, reaps whatever is orphaned, and
 * ends as PROGRAM ends: with its status, or 128+n when signal n killed it.
 * 127: PROGRAM was not found, 126: it can't be run, 125: anything else.
 *
 * No libc: a few system calls and two pages of memory, in every container.
 */
#include <asm/unistd.h>
#include <errno.h>

#define SIGHUP 1
#define SIGABRT 6
#define SIGFPE 8
#define SIGILL 4
#define SIGBUS 7
#define SIGSEGV 11
#define SIGTRAP 5
#define SIGSYS 31
#define SIGCHLD 17
#define SIGTTIN 21
#define SIGTTOU 22
#define SIG_SETMASK 2
#define WNOHANG 1
#define TIOCSPGRP 0x5410
#define PATH_LIMIT 4096

typedef unsigned long sigset; /* the kernel's: 64 signals */

#if defined(__x86_64__)
static long sys4(long n, long a, long b, long c, long d)
{
	long r;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return r;
}
__asm__(".globl _start\n_start:\n\txor %ebp,%ebp\n\tmov %rsp,%rdi\n\tand $-16,%rsp\n\tcall start\n\thlt\n");
#elif defined(__aarch64__)
static long sys4(long n, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
__asm__(".globl _start\n_start:\n\tmov x29,xzr\n\tmov x0,sp\n\tand sp,x0,#-16\n\tbl start\n");
#else
#error "legion-init: this processor's system call is not known here"
#endif

static void leave(int code)
{
	for (;;)
		sys4(__NR_exit_group, code, 0, 0, 0);
}

static unsigned long length(const char *s)
{
	unsigned long n = 0;
	while (s[n])
		n++;
	return n;
}

static void say(const char *s)
{
	sys4(__NR_write, 2, (long)s, (long)length(s), 0);
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static const char *search_path(char **env)
{
	for (; *env; env++) {
		const char *e = *env;
		if (e[0] == 'P' && e[1] == 'A' && e[2] == 'T' && e[3] == 'H' && e[4] == '=')
			return e + 5;
	}
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

static int has_slash(const char *s)
{
	for (; *s; s++)
		if (*s == '/')
			return 1;
	return 0;
}

/* run replaces this process by the program; it returns the error of the last try that says most. */
static long run(char **argv, char **env)
{
	static char full[PATH_LIMIT];
	const char *name = argv[0], *dir = search_path(env);
	unsigned long n = length(name);
	long result = -ENOENT;

	if (has_slash(name))
		return sys4(__NR_execve, (long)name, (long)argv, (long)env, 0);
	for (;;) {
		unsigned long d = 0, i;
		while (dir[d] && dir[d] != ':')
			d++;
		if (d + n + 2 <= sizeof full) {
			for (i = 0; i < d; i++)
				full[i] = dir[i];
			if (d)
				full[i++] = '/';
			for (unsigned long k = 0; k <= n; k++)
				full[i++] = name[k];
			long r = sys4(__NR_execve, (long)full, (long)argv, (long)env, 0);
			if (r != -ENOENT && r != -ENOTDIR)
				result = r;
		}
		if (!dir[d])
			return result;
		dir += d + 1;
	}
}

static void child(char **argv, char **env, sigset old)
{
	sys4(__NR_setpgid, 0, 0, 0, 0);
	int self = (int)sys4(__NR_getpid, 0, 0, 0, 0);
	/* In the foreground of the terminal, if there is one; SIGTTOU is blocked here. */
	sys4(__NR_ioctl, 0, TIOCSPGRP, (long)&self, 0);
	sys4(__NR_rt_sigprocmask, SIG_SETMASK, (long)&old, 0, sizeof old);
	long r = run(argv, env);
	say("legion-init: ");
	say(argv[0]);
	if (r == -ENOENT) {
		say(": no such file in the container\n");
		leave(127);
	}
	say(r == -EACCES ? ": permission denied\n" : ": cannot be executed\n");
	leave(126);
}

/* reap collects all that ended; when the main program is among it, this process ends. */
static void reap(long main_pid)
{
	for (;;) {
		int status = 0;
		long pid = sys4(__NR_wait4, -1, (long)&status, WNOHANG, 0);
		if (pid == -EINTR)
			continue;
		if (pid <= 0)
			return;
		if (pid == main_pid)
			leave((status & 0x7f) ? 128 + (status & 0x7f) : (status >> 8) & 0xff);
	}
}

static sigset bit(int sig)
{
	return 1UL << (sig - 1);
}

__attribute__((used)) void start(long *stack)
{
	int argc = (int)stack[0];
	char **argv = (char **)(stack + 1), **env = argv + argc + 1;

	argv++;
	if (argc > 1 && same(argv[0], "--"))
		argv++;
	if (argc < 2 || !argv[0]) {
		say("usage: legion-init [--] PROGRAM [ARGUMENT...]\n");
		leave(125);
	}

	/* What the kernel raises for our own faults must not be held back. */
	sigset old = 0, all = ~(bit(SIGFPE) | bit(SIGILL) | bit(SIGSEGV) | bit(SIGBUS) | bit(SIGABRT) | bit(SIGTRAP) | bit(SIGSYS));
	sys4(__NR_rt_sigprocmask, SIG_SETMASK, (long)&all, (long)&old, sizeof old);

	long pid = sys4(__NR_clone, SIGCHLD, 0, 0, 0);
	if (pid < 0) {
		say("legion-init: cannot make a process\n");
		leave(125);
	}
	if (pid == 0)
		child(argv, env, old);
	for (;;) {
		long sig = sys4(__NR_rt_sigtimedwait, (long)&all, 0, 0, sizeof all);
		if (sig == SIGCHLD)
			reap(pid);
		else if (sig > 0 && sig != SIGTTIN && sig != SIGTTOU)
			sys4(__NR_kill, pid, sig, 0, 0);
	}
}

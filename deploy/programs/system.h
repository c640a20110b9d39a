/* What the static programs of this directory need of Linux: system calls, strings, and the start.
 *
 * There is no C library: a program is started for every call of a container runtime, and the start
 * of a library would cost more than all that it does. Numbers are those of the kernel's
 * asm/unistd.h, names those of the manual pages of section 2.
 */

#ifndef SYSTEM_H
#define SYSTEM_H

typedef unsigned long size;
typedef signed long result;

#define AT_FDCWD (-100)
#define AT_SYMLINK_NOFOLLOW 0x100
#define AT_EMPTY_PATH 0x1000
#define F_OK 0
#define R_OK 4
#define O_RDONLY 0
#define O_WRONLY 01
#define O_CREAT 0100
#define O_NOCTTY 0400
#define O_APPEND 02000
#define O_NONBLOCK 04000
#define O_CLOEXEC 02000000

#define ENOENT 2
#define E2BIG 7
#define ENOEXEC 8
#define EINTR 4
#define ENOMEM 12
#define EACCES 13
#define ENOTDIR 20
#define ENAMETOOLONG 36
#define ELOOP 40

#if defined(__x86_64__)
#define O_NOFOLLOW 0400000
enum {
	READ = 0, WRITE = 1, CLOSE = 3, EXECVE = 59, GETEUID = 107,
	CLOCK_GETTIME = 228, EXIT_GROUP = 231, OPENAT = 257, FACCESSAT = 269, STATX = 332
};

static inline result call(result number, result a, result b, result c, result d, result e)
{
	result value;
	register result r10 __asm__("r10") = d;
	register result r8 __asm__("r8") = e;

	__asm__ volatile("syscall"
			 : "=a"(value)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return value;
}

/* The kernel leaves the arguments on the stack, which `begin` gets as an aligned pointer. */
__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call begin\n");
#elif defined(__aarch64__)
#define O_NOFOLLOW 0100000
enum {
	READ = 63, WRITE = 64, CLOSE = 57, EXECVE = 221, GETEUID = 175,
	CLOCK_GETTIME = 113, EXIT_GROUP = 94, OPENAT = 56, FACCESSAT = 48, STATX = 291
};

static inline result call(result number, result a, result b, result c, result d, result e)
{
	register result x8 __asm__("x8") = number;
	register result x0 __asm__("x0") = a;
	register result x1 __asm__("x1") = b;
	register result x2 __asm__("x2") = c;
	register result x3 __asm__("x3") = d;
	register result x4 __asm__("x4") = e;

	__asm__ volatile("svc #0"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4)
			 : "memory");
	return x0;
}

__asm__(".globl _start\n"
	"_start:\n"
	"	mov x29, xzr\n"
	"	mov x30, xzr\n"
	"	mov x0, sp\n"
	"	and sp, x0, #-16\n"
	"	bl begin\n");
#else
#error "there are programs for x86-64 and AArch64 only"
#endif

/* What the installer appends to the program: it becomes part of the only loaded segment, so it is
 * there without a file being opened. It is a list of texts, each of them one letter, a value, and a
 * zero; an empty text ends it. programs.ld defines the symbol. */
extern const char settings[];

__attribute__((noreturn)) static void leave(int status)
{
	for (;;)
		call(EXIT_GROUP, status, 0, 0, 0, 0);
}

static size length(const char *text)
{
	size count = 0;

	while (text[count])
		count++;
	return count;
}

static int is_equal(const char *one, const char *other)
{
	for (; *one && *one == *other; one++, other++)
		;
	return *one == *other;
}

/* Return what follows a text at the beginning of another one, or null. */
static const char *after(const char *text, const char *start)
{
	for (; *start; text++, start++)
		if (*text != *start)
			return 0;
	return text;
}

/* Compilers may call these, whatever they are told. */
__attribute__((used)) void *memcpy(void *to, const void *from, size count)
{
	for (size i = 0; i < count; i++)
		((volatile char *)to)[i] = ((const char *)from)[i];
	return to;
}

__attribute__((used)) void *memset(void *to, int value, size count)
{
	for (size i = 0; i < count; i++)
		((volatile char *)to)[i] = (char)value;
	return to;
}

/* Copy a text, without its zero, and return the place behind it. */
static char *append(char *to, const char *text)
{
	while (*text)
		*to++ = *text++;
	return to;
}

/* Write all of some bytes, or as much as the kernel takes. */
static void write_all(int fd, const char *bytes, size count)
{
	while (count > 0) {
		result done = call(WRITE, fd, (result)bytes, (result)count, 0, 0);

		if (done == -EINTR)
			continue;
		if (done <= 0)
			return;
		bytes += done;
		count -= (size)done;
	}
}

/* Return the value of the variable whose name ends at a zero or `=`; the last one, as in a shell.
 * Null if it is not set. */
static const char *variable(char **environment, const char *name)
{
	const char *value = 0;

	for (; *environment; environment++) {
		const char *entry = *environment, *letter = name;

		while (*letter && *letter != '=' && *entry == *letter)
			entry++, letter++;
		if ((!*letter || *letter == '=') && *entry == '=')
			value = entry + 1;
	}
	return value;
}

/* --- the start of another program ----------------------------------------------------------- */

/* Write `SELF: exec: PROGRAM: REASON` in one piece and end, with the status of a shell. */
__attribute__((noreturn)) static void cannot(const char *self, const char *program, result error)
{
	const char *why = error == ENOENT || error == ENOTDIR ? "not found"
			: error == EACCES		      ? "Permission denied"
			: error == E2BIG		      ? "Argument list too long"
			: error == ELOOP		      ? "Too many levels of symbolic links"
			: error == ENOMEM		      ? "Cannot allocate memory"
			: error == ENOEXEC		      ? "Exec format error"
							      : "cannot be executed";
	char *message = __builtin_alloca(length(self) + length(program) + 64);
	char *end = append(append(append(append(message, self), ": exec: "), program), ": ");

	end = append(append(end, why), "\n");
	write_all(2, message, (size)(end - message));
	leave(error == ENOENT || error == ENOTDIR || error == ENAMETOOLONG || error == ELOOP ? 127
											     : 126);
}

/* Execute a file; return only the error. `words[-1]` can be written to: a file that is no program
 * and has no `#!` is run by the shell, as POSIX says for every shell and execvp(3). */
static result try(const char *file, char **words, char **environment)
{
	result error = -call(EXECVE, (result)file, (result)words, (result)environment, 0, 0);

	if (error == ENOEXEC) {
		words[-1] = "/bin/sh";
		words[0] = (char *)file;
		call(EXECVE, (result)words[-1], (result)(words - 1), (result)environment, 0, 0);
	}
	return error;
}

/* Execute a program, which is looked up as a shell does if its name has no slash. */
__attribute__((noreturn)) static void run(const char *self, const char *program, char **words,
					  char **environment)
{
	const char *path, *end, *name = program;
	result error = ENOENT;
	char *file;

	words[0] = (char *)program;
	while (*name && *name != '/')
		name++;
	if (*name)
		cannot(self, program, try(program, words, environment));
	path = variable(environment, "PATH");
	if (!path)
		path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	file = __builtin_alloca(length(path) + length(program) + 2);
	for (;; path = end + 1) {
		char *to = file;
		result found;

		for (end = path; *end && *end != ':'; end++)
			*to++ = *end;
		if (end > path)
			*to++ = '/';
		*append(to, program) = 0;
		found = try(file, words, environment);
		if (found != ENOENT && found != ENOTDIR)
			error = found;
		if (!*end)
			cannot(self, program, error);
		words[0] = (char *)program;
	}
}

#endif

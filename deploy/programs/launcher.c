/* The command of the image: it answers the probes of the kubelet, and starts Python for all else.
 *
 * A start of Python costs more than all that a probe does, and a node has three probes every few
 * seconds. `status --quiet` and `status --live` are therefore answered here if the answer is yes.
 * Whenever something is not exactly as in the usual case, Python decides: this program says yes
 * only where it would. What decides is in toolkit/state/readiness_probe.py, liveness.py, and
 * toolkit/node/trust.py.
 *
 * Settings (see system.h):
 *   V VERSION   of this program, which the readiness record must have been written by
 *   E NAME      a variable with the path of an environment file; none may be set
 *   F NAME      a variable with the path of the readiness record
 *   I NAME      a variable with the path of the PID file
 *   D PATH      the PID file if none of those is set
 *   P PROGRAM   Python
 *   A WORD      one of the words that come before those of the caller
 */

#include "system.h"

#define CLOCK_MONOTONIC 1
#define STATX_BASIC 0x7ff
#define LINK 0120000
#define DIRECTORY 0040000
#define REGULAR 0100000
#define TYPE 0170000
#define STICKY 01000
#define GROUP_WRITES 020
#define OTHERS_WRITE 02

#define LARGEST_STATE 65536
#define LARGEST_PATH 4096
#define LARGEST_CONFIGURATION (64ul << 20)
#define DEEPEST 16

typedef unsigned int word;

/* --- files ---------------------------------------------------------------------------------- */

/* The fields of struct statx that are used; the kernel's has 256 bytes. */
struct status {
	word mask, block;
	unsigned long attributes;
	word links, user, group;
	unsigned short mode, spare;
	char rest[256 - 32];
};

/* Return whether only root can change what is at a path, apart from what is above it. */
static int is_roots(const char *path, int is_file)
{
	struct status status = {0};

	if (call(STATX, AT_FDCWD, (result)path, AT_SYMLINK_NOFOLLOW, STATX_BASIC,
		 (result)&status) < 0)
		return 0;
	if (status.user != 0 || (status.mode & TYPE) != (is_file ? REGULAR : DIRECTORY))
		return 0;
	if (!is_file && status.mode & STICKY)
		return 1;
	if (status.mode & OTHERS_WRITE)
		return 0;
	return !(status.mode & GROUP_WRITES) || (!is_file && status.group == 0);
}

/* Read all of a file into a buffer, with a zero behind it; return its size, or -1. */
static result read_all(const char *path, char *buffer, size room, int flags)
{
	result fd = call(OPENAT, AT_FDCWD, (result)path,
			 O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | flags, 0, 0);
	size have = 0;

	if (fd < 0)
		return -1;
	for (;;) {
		result count = call(READ, fd, (result)(buffer + have), (result)(room - have), 0, 0);

		if (count == -EINTR)
			continue;
		if (count < 0)
			return -1;
		if (count == 0)
			break;
		have += (size)count;
		if (have == room)
			return -1;
	}
	call(CLOSE, fd, 0, 0, 0, 0);
	buffer[have] = 0;
	return (result)have;
}

/* Read a file of root's, below directories that are root's and no links; return its size, or -1. */
static result read_own(const char *path, char *buffer, size room)
{
	char part[LARGEST_PATH];
	size at = 0;

	if (*path != '/' || length(path) >= sizeof(part) || !is_roots("/", 0))
		return -1;
	while (path[at]) {
		part[at] = path[at];
		at++;
		if (path[at] && path[at] != '/')
			continue;
		if (part[at - 1] == '/')
			continue;
		if (part[at - 1] == '.' && (part[at - 2] == '/' || part[at - 2] == '.'))
			return -1;
		part[at] = 0;
		if (!is_roots(part, !path[at]))
			return -1;
	}
	return read_all(path, buffer, room, O_NOFOLLOW);
}

/* --- SHA-256 (FIPS 180-4) ------------------------------------------------------------------- */

static const word constants[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
	0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
	0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
	0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
	0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
	0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
	0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
	0xc67178f2,
};

static word turned(word value, int bits)
{
	return value >> bits | value << (32 - bits);
}

static void digest_block(word *state, const unsigned char *block)
{
	word w[64], s[8];

	for (int i = 0; i < 16; i++)
		w[i] = (word)block[4 * i] << 24 | (word)block[4 * i + 1] << 16 |
		       (word)block[4 * i + 2] << 8 | block[4 * i + 3];
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + w[i - 7] +
		       (turned(w[i - 15], 7) ^ turned(w[i - 15], 18) ^ w[i - 15] >> 3) +
		       (turned(w[i - 2], 17) ^ turned(w[i - 2], 19) ^ w[i - 2] >> 10);
	for (int i = 0; i < 8; i++)
		s[i] = state[i];
	for (int i = 0; i < 64; i++) {
		word one = s[7] + (turned(s[4], 6) ^ turned(s[4], 11) ^ turned(s[4], 25)) +
			   ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[i] + w[i];
		word two = (turned(s[0], 2) ^ turned(s[0], 13) ^ turned(s[0], 22)) +
			   ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));

		for (int k = 7; k > 0; k--)
			s[k] = s[k - 1];
		s[4] += one;
		s[0] = one + two;
	}
	for (int i = 0; i < 8; i++)
		state[i] += s[i];
}

/* Return whether an open file has a fingerprint: its SHA-256, 64 hexadecimal digits. */
static int has_digest(int fd, const char *digits)
{
	word state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
			 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
	unsigned char buffer[16384];
	size have = 0, whole = 0;

	for (;;) {
		result count = call(READ, fd, (result)(buffer + have),
				    (result)(sizeof(buffer) - have), 0, 0);
		size at = 0;

		if (count == -EINTR)
			continue;
		if (count < 0)
			return 0;
		have += (size)count;
		whole += (size)count;
		if (whole >= LARGEST_CONFIGURATION)
			return 0;
		if (count == 0)
			break;
		for (; have - at >= 64; at += 64)
			digest_block(state, buffer + at);
		for (size i = at; i < have; i++)
			buffer[i - at] = buffer[i];
		have -= at;
	}
	buffer[have++] = 0x80;
	while (have % 64 != 56)
		buffer[have++] = 0;
	for (int i = 7; i >= 0; i--)
		buffer[have++] = (unsigned char)(whole * 8 >> 8 * i);
	for (size at = 0; at < have; at += 64)
		digest_block(state, buffer + at);
	for (int i = 0; i < 64; i++)
		if (digits[i] != "0123456789abcdef"[state[i / 8] >> (28 - i % 8 * 4) & 15])
			return 0;
	return 1;
}

/* --- JSON ----------------------------------------------------------------------------------- */

/* A place in a document that ends with a zero. Whatever is not understood sets `failed`, and the
 * place is at the end then. */
struct reader {
	const char *at;
	int failed;
};

struct text {
	const char *start;
	size count;
};

static void fail(struct reader *reader)
{
	reader->failed = 1;
	reader->at = "";
}

static void skip_space(struct reader *reader)
{
	while (*reader->at == ' ' || *reader->at == '\n' || *reader->at == '\t' ||
	       *reader->at == '\r')
		reader->at++;
}

/* Take a sign, if it is next. */
static int takes(struct reader *reader, char sign)
{
	skip_space(reader);
	if (*reader->at != sign)
		return 0;
	reader->at++;
	return 1;
}

static void expect(struct reader *reader, char sign)
{
	if (!takes(reader, sign))
		fail(reader);
}

static int takes_word(struct reader *reader, const char *word)
{
	const char *rest;

	skip_space(reader);
	rest = after(reader->at, word);
	if (!rest)
		return 0;
	reader->at = rest;
	return 1;
}

/* Take a text of printable ASCII without an escape. */
static struct text take_text(struct reader *reader)
{
	struct text text = {"", 0};

	expect(reader, '"');
	text.start = reader->at;
	while (*reader->at >= ' ' && *reader->at < 127 && *reader->at != '"' &&
	       *reader->at != '\\')
		reader->at++;
	text.count = (size)(reader->at - text.start);
	if (*reader->at != '"')
		fail(reader);
	else
		reader->at++;
	return text;
}

static int is_text(struct text text, const char *other)
{
	size at = 0;

	while (at < text.count && other[at] == text.start[at])
		at++;
	return at == text.count && !other[at];
}

static int is_digit(char sign)
{
	return sign >= '0' && sign <= '9';
}

/* Take a whole number of at most 18 digits. */
static long take_number(struct reader *reader)
{
	long value = 0;
	int digits = 0;

	skip_space(reader);
	for (; is_digit(*reader->at) && digits < 18; digits++)
		value = value * 10 + (*reader->at++ - '0');
	if (!digits || (digits > 1 && reader->at[-digits] == '0') || is_digit(*reader->at) ||
	    *reader->at == '.' || *reader->at == 'e' || *reader->at == 'E')
		fail(reader);
	return value;
}

/* Take a number of seconds with up to 9 digits behind the point; return nanoseconds. */
static long take_seconds(struct reader *reader)
{
	long value = 0, fraction = 0, unit = 1000000000;
	int digits = 0;

	skip_space(reader);
	for (; is_digit(*reader->at) && digits < 9; digits++)
		value = value * 10 + (*reader->at++ - '0');
	if (!digits || (digits > 1 && reader->at[-digits] == '0'))
		fail(reader);
	if (*reader->at == '.') {
		if (!is_digit(*++reader->at))
			fail(reader);
		/* What is behind the ninth digit is left out, so the number is not made larger. */
		for (; is_digit(*reader->at); reader->at++) {
			unit /= 10;
			fraction += (*reader->at - '0') * unit;
		}
	}
	if (is_digit(*reader->at) || *reader->at == 'e' || *reader->at == 'E')
		fail(reader);
	return value * 1000000000 + fraction;
}

/* Take any value of the kinds that this program writes. */
static void skip(struct reader *reader, int depth)
{
	skip_space(reader);
	if (depth > DEEPEST) {
		fail(reader);
	} else if (*reader->at == '"') {
		take_text(reader);
	} else if (is_digit(*reader->at)) {
		take_seconds(reader);
	} else if (takes(reader, '[')) {
		if (takes(reader, ']'))
			return;
		do
			skip(reader, depth + 1);
		while (takes(reader, ','));
		expect(reader, ']');
	} else if (takes(reader, '{')) {
		if (takes(reader, '}'))
			return;
		do {
			take_text(reader);
			expect(reader, ':');
			skip(reader, depth + 1);
		} while (takes(reader, ','));
		expect(reader, '}');
	} else if (!takes_word(reader, "true") && !takes_word(reader, "false") &&
		   !takes_word(reader, "null")) {
		fail(reader);
	}
}

/* Return whether nothing failed and nothing is left before the end. */
static int is_done(struct reader *reader, const char *end)
{
	skip_space(reader);
	return !reader->failed && reader->at == end;
}

/* --- what a record says --------------------------------------------------------------------- */

static int is_this_boot(struct text text)
{
	char boot[64];
	result count = read_all("/proc/sys/kernel/random/boot_id", boot, sizeof(boot), 0);

	if (count < 2 || boot[count - 1] != '\n')
		return 0;
	boot[count - 1] = 0;
	return is_text(text, boot);
}

/* Return whether a process runs that was started at a time, in clock ticks since boot. */
static int is_running(long pid, long started)
{
	char path[64], digits[24], stat[2048];
	struct reader reader = {stat, 0};
	char *to = append(path, "/proc/");
	int count = 0;
	result end;

	do
		digits[count++] = (char)('0' + pid % 10);
	while ((pid /= 10) > 0);
	while (count > 0)
		*to++ = digits[--count];
	*append(to, "/stat") = 0;
	end = read_all(path, stat, sizeof(stat), 0);
	if (end < 0)
		return 0;
	/* The name may contain anything; the state is behind its last parenthesis. */
	while (end > 0 && stat[end - 1] != ')')
		end--;
	if (end == 0 || stat[end] != ' ' || stat[end + 1] == 'Z')
		return 0;
	reader.at = stat + end;
	for (int field = 0; field < 20; field++) {
		while (*reader.at && *reader.at != ' ')
			reader.at++;
		if (*reader.at)
			reader.at++;
	}
	return take_number(&reader) == started && !reader.failed;
}

/* Take an array of a PID and a start, and return whether that process runs. */
static int takes_running(struct reader *reader)
{
	long pid, started;

	expect(reader, '[');
	pid = take_number(reader);
	expect(reader, ',');
	started = take_number(reader);
	expect(reader, ']');
	return !reader->failed && is_running(pid, started);
}

static void copy(char *to, struct text text)
{
	for (size i = 0; i < text.count; i++)
		to[i] = text.start[i];
	to[text.count] = 0;
}

/* Take an array of paths, and return whether one of them exists. */
static int takes_existing(struct reader *reader)
{
	int exists = 0;

	expect(reader, '[');
	do {
		struct text text = take_text(reader);
		char path[LARGEST_PATH];

		if (reader->failed || text.count >= sizeof(path))
			return 0;
		copy(path, text);
		exists |= call(FACCESSAT, AT_FDCWD, (result)path, F_OK, 0, 0) == 0;
	} while (takes(reader, ','));
	expect(reader, ']');
	return exists;
}

/* Take an object of paths and fingerprints, and return whether each file has its own. */
static int takes_unchanged(struct reader *reader)
{
	expect(reader, '{');
	if (takes(reader, '}'))
		return 1;
	do {
		struct text text = take_text(reader), known;
		char path[LARGEST_PATH];
		int is_same;
		result fd;

		expect(reader, ':');
		known = take_text(reader);
		if (reader->failed || text.count >= sizeof(path))
			return 0;
		copy(path, text);
		fd = call(OPENAT, AT_FDCWD, (result)path, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0, 0);
		if (fd == -ENOENT) {
			is_same = is_text(known, "absent");
		} else {
			is_same = fd >= 0 && known.count == 64 && has_digest((int)fd, known.start);
			if (fd >= 0)
				call(CLOSE, fd, 0, 0, 0, 0);
		}
		if (!is_same)
			return 0;
	} while (takes(reader, ','));
	expect(reader, '}');
	return 1;
}

/* Note in `seen` that a key was read; return whether it was so before. */
static int is_again(unsigned *seen, unsigned key)
{
	int again = (*seen & key) != 0;

	*seen |= key;
	return again;
}

/* Return the setting with a letter behind another one, or the first; null if there is none. */
static const char *setting(const char *value, char letter)
{
	const char *from = value ? value + length(value) + 1 : settings;

	for (; *from; from += length(from) + 1)
		if (*from == letter)
			return from + 1;
	return 0;
}

/* The keys of a record, one bit each, in the order of its list of names: what both records have,
 * what only the readiness record has, and what only the state of the agent has. */
enum { FORMAT = 1, BOOT = 2, PID = 4, STARTED = 8 };
enum { TOOL = 16, PLUGIN = 32, DRIVER = 64, CONFIGURATION = 128 };
enum { SYNCING = 16, SINCE = 32, DEADLINE = 64, FAILED = 128, FAILURE = 256, ALL = 511 };

#define COMMON "format\0" "boot\0" "pid\0" "started\0"

/* A process that a record names; -1 is what it does not say. */
struct process {
	long pid, started;
};

/* Take the value of a key, which is 0 if it is not in the list; return whether it is right. */
typedef int takes_value(struct reader *reader, unsigned key, struct process *process);

/* Return the bit of a text in a list of names that each end with a zero; 0 if it is none. */
static unsigned key_of(struct text text, const char *names)
{
	for (unsigned bit = 1; *names; bit <<= 1, names += length(names) + 1)
		if (is_text(text, names))
			return bit;
	return 0;
}

/* Read a file with one object, each key at most once; return its keys, or 0 if one is not right. */
static unsigned read_record(const char *path, const char *names, takes_value *takes_right,
			    struct process *process)
{
	char document[LARGEST_STATE];
	struct reader reader = {document, 0};
	unsigned seen = 0;
	result count = read_own(path, document, sizeof(document));

	if (count < 0)
		return 0;
	expect(&reader, '{');
	do {
		unsigned key = key_of(take_text(&reader), names);

		expect(&reader, ':');
		if (reader.failed || is_again(&seen, key))
			return 0;
		if (!takes_right(&reader, key, process) || reader.failed)
			return 0;
	} while (takes(&reader, ','));
	expect(&reader, '}');
	return is_done(&reader, document + count) ? seen : 0;
}

static int takes_readiness(struct reader *reader, unsigned key, struct process *process)
{
	if (key == FORMAT)
		return take_number(reader) == 2;
	if (key == TOOL)
		return is_text(take_text(reader), setting(0, 'V'));
	if (key == BOOT)
		return is_this_boot(take_text(reader));
	if (key && takes_word(reader, "null"))
		return key != CONFIGURATION;
	if (key == PID)
		process->pid = take_number(reader);
	else if (key == STARTED)
		process->started = take_number(reader);
	else if (key == PLUGIN)
		return takes_running(reader);
	else if (key == DRIVER)
		return takes_existing(reader);
	else if (key == CONFIGURATION)
		return takes_unchanged(reader);
	else
		skip(reader, 0);
	return 1;
}

/* Return whether a readiness record surely applies to the node. */
static int is_ready(const char *record)
{
	struct process runtime = {-1, -1};
	unsigned seen = read_record(record, COMMON "tool\0" "plugin\0" "driver\0" "configuration\0",
				    takes_readiness, &runtime);

	if ((seen & (FORMAT | TOOL | BOOT)) != (FORMAT | TOOL | BOOT))
		return 0;
	if (runtime.pid < 0)
		return runtime.started < 0;
	return runtime.started >= 0 && is_running(runtime.pid, runtime.started);
}

/* Return whether a time of the clock that only goes forward, in nanoseconds, is not over. */
static int is_to_come(long deadline)
{
	long now[2] = {0, 0};

	return call(CLOCK_GETTIME, CLOCK_MONOTONIC, (result)now, 0, 0, 0) == 0 &&
	       deadline >= now[0] * 1000000000 + now[1];
}

static int takes_liveness(struct reader *reader, unsigned key, struct process *process)
{
	if (key == FORMAT)
		return take_number(reader) == 1;
	if (key == BOOT)
		return is_this_boot(take_text(reader));
	if (key == PID)
		process->pid = take_number(reader);
	else if (key == STARTED)
		process->started = take_number(reader);
	else if (key == DEADLINE)
		return takes_word(reader, "null") || is_to_come(take_seconds(reader));
	else if (key == FAILED)
		return take_number(reader) < 3;
	else
		skip(reader, 0);
	return key != 0;
}

/* Return whether the agent whose state is in a file surely is healthy. */
static int is_alive(const char *state)
{
	struct process agent = {-1, -1};
	unsigned seen = read_record(
		state, COMMON "is_syncing\0" "since\0" "deadline\0" "failed_starts\0" "failure\0",
		takes_liveness, &agent);

	return seen == ALL && is_running(agent.pid, agent.started);
}

/* --- the command ---------------------------------------------------------------------------- */

/* Return the value of the first variable of some that is set and not empty, or null. */
static const char *given(char **environment, char letter)
{
	const char *name, *value;

	for (name = setting(0, letter); name; name = setting(name, letter))
		if ((value = variable(environment, name)) && *value)
			return value;
	return 0;
}

/* Write the path of a file beside the PID file; return whether that is as usual. */
static int is_beside(char **environment, const char *name, char *path)
{
	const char *pid_file = given(environment, 'I'), *end;

	if (!pid_file)
		pid_file = setting(0, 'D');
	if (!pid_file || length(pid_file) > LARGEST_PATH - 64)
		return 0;
	for (end = pid_file + length(pid_file); end > pid_file && end[-1] != '/'; end--)
		;
	if (!is_equal(end, "toolkit.pid"))
		return 0;
	copy(path, (struct text){pid_file, (size)(end - pid_file)});
	*append(path + (end - pid_file), name) = 0;
	return 1;
}

/* Return whether the words are a probe, and the answer surely is yes. */
static int is_yes(char **words, char **environment)
{
	char path[LARGEST_PATH];
	const char *record;

	if (!words[0] || !words[1] || words[2] || !is_equal(words[0], "status"))
		return 0;
	if (!setting(0, 'V') || given(environment, 'E') || call(GETEUID, 0, 0, 0, 0, 0) != 0)
		return 0;
	if (is_equal(words[1], "--live"))
		return is_beside(environment, "agent.json", path) && is_alive(path);
	if (!is_equal(words[1], "--quiet") && !is_equal(words[1], "-q"))
		return 0;
	record = given(environment, 'F');
	if (record)
		return is_ready(record);
	return is_beside(environment, "ready.json", path) && is_ready(path);
}

__attribute__((noreturn, used)) void begin(long *stack)
{
	char **words = (char **)(stack + 1), **environment = words + stack[0] + 1, **all, **to;
	const char *self = stack[0] > 0 ? words[0] : "nvidia-toolkit", *text;
	size count = (size)stack[0] + 4;

	if (stack[0] > 0) {
		if (is_yes(words + 1, environment))
			leave(0);
		words++;
	}
	for (text = setting(0, 'A'); text; text = setting(text, 'A'))
		count++;
	all = to = __builtin_alloca(count * sizeof(*all));
	to += 2; /* for the shell, and for the program's own name */
	for (text = setting(0, 'A'); text; text = setting(text, 'A'))
		*to++ = (char *)text;
	while (*words)
		*to++ = *words++;
	*to = 0;
	text = setting(0, 'P');
	if (!text)
		cannot(self, "no settings", 0);
	run(self, text, all + 1, environment);
}

/* The wrapper of one of the toolkit's programs, for nodes without a shell, and faster than one.
 *
 * It does what the script of toolkit/artifacts/wrappers.py does, which is the place to read why. It
 * keeps no state, opens no file unless a container may be refused, and needs neither /proc nor
 * memory besides its stack.
 *
 * Settings (see system.h):
 *   D PATH        one of the paths that show the driver
 *   L PROGRAM     the low-level runtime, executed if there is none of them
 *   R             a container that requests GPUs is refused then
 *   A TEXT        a container with this text in its configuration requests GPUs
 *   S NAME=VALUE  set a variable
 *   P NAME=VALUE  put a value before that of a variable, with a colon between
 *   X PROGRAM     the program to execute
 */

#include "system.h"

/* Bytes that a text of the configuration can have; toolkit/artifacts/static_wrapper.py checks it. */
#define LONGEST 4096
#define BUFFER 65536

static const char refusal[] =
	"this container requests GPUs, but the NVIDIA driver is not loaded on this node"
	" (refused because of --require-driver)";

/* Return the next setting with a letter, or null. The first call gets `settings`. */
static const char *setting(const char *from, char letter)
{
	for (; *from; from += length(from) + 1)
		if (*from == letter)
			return from + 1;
	return 0;
}

/* Return the setting with a letter that follows another one, or null. */
static const char *next(const char *value, char letter)
{
	return setting(value + length(value) + 1, letter);
}

static int has_driver(void)
{
	const char *sign;

	for (sign = setting(settings, 'D'); sign; sign = next(sign, 'D'))
		if (call(FACCESSAT, AT_FDCWD, (result)sign, F_OK, 0, 0) == 0)
			return 1;
	return 0;
}

/* --- what a container requests -------------------------------------------------------------- */

/* What the lines so far request, and what the present one contains. */
struct request {
	int asks, mounts, none;
	int is_nothing, is_empty, is_set, is_void, is_mount, is_annotated;
};

static int is_at(const char *bytes, size count, const char *text)
{
	for (; *text && count; bytes++, text++, count--)
		if (*bytes != *text)
			return 0;
	return !*text;
}

/* Note what begins with the quote at `bytes`. */
static void note(struct request *request, const char *bytes, size count)
{
	const char *text;

	if (is_at(bytes, count, "\"NVIDIA_VISIBLE_DEVICES=")) {
		request->is_set = 1;
		if (is_at(bytes, count, "\"NVIDIA_VISIBLE_DEVICES=void\"") ||
		    is_at(bytes, count, "\"NVIDIA_VISIBLE_DEVICES=none\""))
			request->is_nothing = 1;
		if (is_at(bytes, count, "\"NVIDIA_VISIBLE_DEVICES=\""))
			request->is_empty = 1;
	}
	if (is_at(bytes, count, "\"/var/run/nvidia-container-devices/")) {
		request->is_mount = 1;
		if (is_at(bytes, count, "\"/var/run/nvidia-container-devices/void\""))
			request->is_void = 1;
	}
	for (text = setting(settings, 'A'); text; text = next(text, 'A'))
		if (is_at(bytes, count, text))
			request->is_annotated = 1;
}

static void end_line(struct request *line)
{
	if ((line->is_set && !line->is_nothing && !line->is_empty) || line->is_annotated)
		line->asks = 1;
	if (line->is_void)
		line->none = 1;
	else if (line->is_mount)
		line->mounts = 1;
	line->is_nothing = line->is_empty = line->is_set = 0;
	line->is_void = line->is_mount = line->is_annotated = 0;
}

/* Return whether an open OCI configuration requests GPUs. It is not parsed: see the script. */
static int requests(int fd)
{
	char buffer[BUFFER];
	struct request request = {0};
	size have = 0, at = 0;
	int is_end = 0;

	for (;;) {
		if (!is_end && have - at < LONGEST) {
			result count;

			for (size i = at; i < have; i++)
				buffer[i - at] = buffer[i];
			have -= at;
			at = 0;
			count = call(READ, fd, (result)(buffer + have), (result)(BUFFER - have), 0, 0);
			if (count == -EINTR)
				continue;
			if (count > 0)
				have += (size)count;
			else
				is_end = 1;
			continue;
		}
		if (at == have)
			break;
		if (buffer[at] == '\n')
			end_line(&request);
		else if (buffer[at] == '"')
			note(&request, buffer + at, have - at);
		at++;
	}
	end_line(&request);
	return request.asks || (request.mounts && !request.none);
}

/* End with the reason if the words create a container that requests GPUs. containerd reads the
 * reason from the low-level runtime's log, conmon from standard error. */
static void refuse(char **words)
{
	static const char head[] = "{\"level\":\"error\",\"msg\":\"", tail[] = "\"}\n";
	const char *bundle = ".", *log = "", *last = "";
	int creates = 0;
	char *file;
	result fd;

	for (; *words; last = *words++) {
		const char *word = *words, *value;

		if (is_equal(last, "--bundle") || is_equal(last, "-b"))
			bundle = word;
		else if (is_equal(last, "--log"))
			log = word;
		if ((value = after(word, "--bundle=")) || (value = after(word, "-b=")))
			bundle = value;
		else if ((value = after(word, "--log=")))
			log = value;
		else if (is_equal(word, "create") || is_equal(word, "run"))
			creates = 1;
	}
	if (!creates)
		return;
	file = __builtin_alloca(length(bundle) + sizeof("/config.json"));
	*append(append(file, bundle), "/config.json") = 0;
	fd = call(OPENAT, AT_FDCWD, (result)file, O_RDONLY | O_CLOEXEC, 0, 0);
	if (fd < 0)
		return;
	if (!requests((int)fd)) {
		call(CLOSE, fd, 0, 0, 0, 0);
		return;
	}
	if (*log) {
		char message[sizeof(head) + sizeof(refusal) + sizeof(tail)];
		char *end = append(append(append(message, head), refusal), tail);

		fd = call(OPENAT, AT_FDCWD, (result)log,
			  O_WRONLY | O_CREAT | O_APPEND | O_NOCTTY | O_CLOEXEC, 0666, 0);
		if (fd >= 0)
			write_all((int)fd, message, (size)(end - message));
	}
	write_all(2, refusal, sizeof(refusal) - 1);
	write_all(2, "\n", 1);
	leave(1);
}

/* --- the environment ------------------------------------------------------------------------ */

/* Return whether a variable of the environment is one that a setting sets. */
static int is_set(char *entry)
{
	char *one[] = {entry, 0};
	const char *text;

	for (text = settings; *text; text += length(text) + 1)
		if ((*text == 'S' || *text == 'P') && variable(one, text + 1))
			return 1;
	return 0;
}

__attribute__((noreturn)) static void wrap(const char *self, char **words, char **old)
{
	const char *program = setting(settings, 'X'), *text;
	size count = 0;
	char **environment, **to;

	if (!program)
		cannot(self, "no settings", 0);
	while (old[count])
		count++;
	for (text = settings; *text; text += length(text) + 1)
		count++;
	to = environment = __builtin_alloca((count + 1) * sizeof(*environment));
	for (char **from = old; *from; from++)
		if (!is_set(*from))
			*to++ = *from;
	for (text = settings; *text; text += length(text) + 1) {
		if (*text == 'S') {
			*to++ = (char *)text + 1;
		} else if (*text == 'P') {
			const char *value = variable(old, text + 1);
			char *entry;

			if (!value || !*value) {
				*to++ = (char *)text + 1;
				continue;
			}
			*to++ = entry = __builtin_alloca(length(text) + length(value) + 2);
			*append(append(append(entry, text + 1), ":"), value) = 0;
		}
	}
	*to = 0;
	run(self, program, words, environment);
}

__attribute__((noreturn, used)) void begin(long *stack)
{
	char **words = (char **)(stack + 1), **environment = words + stack[0] + 1;
	const char *low_level = setting(settings, 'L'), *self = "nvidia-toolkit";
	char *none[] = {0, 0, 0};

	if (stack[0] > 0)
		self = words[0];
	else
		words = none + 1;
	if (low_level && !has_driver()) {
		if (setting(settings, 'R') && *words)
			refuse(words + 1);
		run(self, low_level, words, environment);
	}
	wrap(self, words, environment);
}

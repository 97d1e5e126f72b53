/* seekdir DIR COUNT: DIR has COUNT entries, each once, and after seekdir to what telldir said
 * somewhere the rest is the same as before, in the same order. */
#include <dirent.h>
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char **names;
static long *places; /* places[i] is before names[i] */
static size_t count;

static int by_name(const void *a, const void *b) {
	return strcmp(*(char *const *)a, *(char *const *)b);
}

static void rest(DIR *d, size_t from) {
	struct dirent *e;
	size_t i = from;
	while ((e = readdir(d)) != NULL) {
		if (i >= count)
			errx(1, "after seekdir to entry %zu there is one too many: %s", from, e->d_name);
		if (strcmp(e->d_name, names[i]) != 0)
			errx(1, "after seekdir to entry %zu, entry %zu is %s, not %s", from, i, e->d_name, names[i]);
		i++;
	}
	if (i != count)
		errx(1, "after seekdir to entry %zu the directory ends at %zu of %zu", from, i, count);
}

int main(int argc, char **argv) {
	if (argc != 3)
		errx(2, "usage: seekdir DIR COUNT");
	size_t want = strtoul(argv[2], NULL, 10) + 2; /* and . and .. */
	DIR *d = opendir(argv[1]);
	if (d == NULL)
		err(1, "%s", argv[1]);
	names = calloc(want + 1, sizeof *names);
	places = calloc(want + 1, sizeof *places);
	if (names == NULL || places == NULL)
		err(1, "calloc");
	struct dirent *e;
	for (;; count++) {
		long at = telldir(d);
		if ((e = readdir(d)) == NULL)
			break;
		if (count == want)
			errx(1, "more than %zu entries", want);
		names[count] = strdup(e->d_name);
		places[count] = at;
	}
	if (count != want)
		errx(1, "%zu entries, want %zu", count, want);
	places[count] = telldir(d);

	/* From the end towards the start, and back to the end: buffers change each time. */
	for (int tenth = 10; tenth >= 0; tenth--) {
		size_t from = count * tenth / 10;
		seekdir(d, places[from]);
		rest(d, from);
	}
	seekdir(d, places[count]);
	rest(d, count);
	for (size_t i = 1; i < 100; i++) { /* one entry here, one there */
		size_t at = i * 7919 % count;
		seekdir(d, places[at]);
		if ((e = readdir(d)) == NULL || strcmp(e->d_name, names[at]) != 0)
			errx(1, "seekdir to entry %zu of %zu leads elsewhere", at, count);
	}
	rewinddir(d);
	rest(d, 0);

	qsort(names, count, sizeof *names, by_name);
	for (size_t i = 1; i < count; i++)
		if (strcmp(names[i - 1], names[i]) == 0)
			errx(1, "%s is there twice", names[i]);
	closedir(d);
	return 0;
}

// Package cachedb is the node's local cache: objects by digest, a quota that holds, trustworthy after a crash.
//
// Open a directory, then ask it:
//
//	db, err := cachedb.Open(cachedb.Config{Dir: "/var/cache/skimfs"})
//	plain, err := db.Get(ctx, digest, size, cachedb.ClassFile, fill)   // memory, disk, or one shared fill
//	ok, err := db.ReadAt(digest, size, p, off)                         // what is cached, without waiting for anyone
//
// # Promises
//
// No wrong byte: every 16 KiB block carries a CRC-32C that each read from disk checks, every record names its digest, and
// after an unclean stop an object's SHA-256 is checked on its first use. A bad object is dropped, logged, counted, and
// looks as if it had never been cached. The disk usage of the directory stays under the limit, and a reserve of the
// partition's free space stays untouched; when neither can be had, reads are answered without being cached. Concurrent
// askers share one fill; each leaves when its own context ends. State records are on disk when SetState returns.
//
// # Non-promises
//
// A cached object may leave at any time, except under a read in flight. Objects are not synced one by one: after a power
// loss the newest may be gone. One process owns a directory; a second Open fails with ErrInUse.
//
// # Layout
//
//	DIR/lock             flock of the owner, holding its process id
//	DIR/dirty            present while the cache is open: "opening" or "open", and the size of badger's memtable
//	DIR/state            the state records, which the index holds as well
//	DIR/index/           badger: the keys of keys.go
//	DIR/index.sums       names, sizes and CRC-32C of the files in index/ at the last clean stop
//	DIR/index.damaged/   the last index that could not be read; the first to leave when there is need for room
//	DIR/damaged/         what kept the cache from being opened, and all that was beside it; leaves as soon
//	DIR/packs/<n>.pack   objects up to 32 KiB: records of a 64-byte header and the plain content; append-only; n is not reused
//	DIR/chunks/<2>/<64>  larger objects, named by their SHA-256 in hex: the plain content and a trailer
//	DIR/tmp/             chunk files being written
//
// All integers are little-endian. A pack record's header, at any multiple of 8:
//
//	0 magic "skp1" | 4 algorithm u8 | 5 class u8 | 6 zero u16 | 8 size u32 | 12 CRC-32C of block 0 | 16 CRC-32C of block 1 or 0
//	20 digest 32 B | 52 clock u32 | 56 zero u32 | 60 CRC-32C of bytes 0-59
//
// A chunk file's trailer is the list of the blocks' CRC-32C (u32 each) and a footer of 64 bytes, the file's last:
//
//	0 magic "skc1" | 4 algorithm u8 | 5 class u8 | 6 zero u16 | 8 size u32 | 12 CRC-32C of the list | 16 zero u32
//	20 digest 32 B | 52 clock u32 | 56 zero u32 | 60 CRC-32C of bytes 0-59
//
// Packs and chunk files are complete in themselves: the index is rebuilt from them when it is damaged. The clock counts
// insertions and orders objects by their last use.
//
// # In memory
//
// With Config.RAM objects lie in a file in memory instead of packs, chunks and index, and end with the process; DIR has lock and state alone. The
// limit, pins and the order of eviction are the same, the free space watched is the machine's memory. Blocks carry no checksums.
//
// # Archives
//
// ArchiveWriter and ReadArchive carry objects from one cache to another in one file, which unpacked is a lower cache.
//
// # Lower cache
//
// Lower is a directory below the caches of many nodes; it needs no DB.
//
// # Memory
//
// 61 to 69 bytes an object for the table that every lookup uses, outside Go's heap (badger is read only when the cache opens), the memory
// tier (Config.Memory), badger's memtables, about 8 MB, and while objects come in its compactions, about 20 MB.
package cachedb

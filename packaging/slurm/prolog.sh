#!/bin/sh
# Slurm prolog (Prolog=/etc/slurm/prolog.d/50-skimfs, as root on each node): mounts what /etc/skimfs/job-mounts lists, on behalf of the job.
# Its lines are SOURCE TARGET [OPTIONS]. Jobs share mounts; the last one's epilog takes a mount down.
# A prolog that fails drains the node: here that is so only with SKIMFS_REQUIRED=yes, else the failure is logged and the job starts.
PATH=${PATH:-/usr/sbin:/usr/bin:/sbin:/bin}:/usr/local/bin
export PATH # slurmd passes none on
list=${SKIMFS_JOB_MOUNTS:-/etc/skimfs/job-mounts}
[ -n "$SLURM_JOB_ID" ] && [ -r "$list" ] || exit 0
status=0
while read -r source target options; do
	case $source in '' | '#'*) continue ;; esac
	mkdir -p "$target"
	timeout 60 skimfs mount --lease "slurm-$SLURM_JOB_ID" ${options:+-o "$options"} "$source" "$target" </dev/null || {
		logger -t skimfs -p daemon.err "job $SLURM_JOB_ID: mounting $source on $target failed" 2>/dev/null
		status=1
	}
done <"$list"
[ "$SKIMFS_REQUIRED" = yes ] || status=0
exit $status

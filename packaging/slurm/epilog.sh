#!/bin/sh
# Slurm epilog (Epilog=/etc/slurm/epilog.d/50-skimfs): ends the job's lease. Mounts that no other job needs are detached, never by force.
# An epilog that fails drains the node, which a mount that stays is no reason for.
PATH=${PATH:-/usr/sbin:/usr/bin:/sbin:/bin}:/usr/local/bin
export PATH # slurmd passes none on
[ -n "$SLURM_JOB_ID" ] || exit 0
timeout 60 skimfs release --lease "slurm-$SLURM_JOB_ID" >/dev/null ||
	logger -t skimfs -p daemon.err "job $SLURM_JOB_ID: ending its lease failed" 2>/dev/null
exit 0

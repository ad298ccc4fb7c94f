#!/usr/bin/env bash
# The Slurm profile on a real Slurm of one node, this machine: `bash tools/campaigns/slurm.sh FOLDER`, as root, with
# Debian's slurm-wlm installed.
#
# Starts munge, slurmctld and slurmd with a configuration of their own below FOLDER, runs the tiny tier from nothing
# to the teacher's scores and one evaluation by `snakemake --profile profiles/slurm`, shows how Slurm says each job
# ended, and stops what it started. The GPU that the profile asks for is a stand-in (a device file). Python packages:
# those of the environment, and the executor plugin, which is put into FOLDER. pytest does not run it.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
host=$(hostname -s)
memory=$(free --mega | awk '/^Mem/ {print int($2 * 0.9)}')

mkdir -p "$folder"/{state,spool,plugins}
python -m pip install --quiet --target "$folder/plugins" --no-deps \
    snakemake-executor-plugin-slurm==2.8.0 snakemake-executor-plugin-slurm-jobstep==0.6.0 throttler
cat > "$folder/slurm.conf" <<EOF
ClusterName=one
SlurmctldHost=$host
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/completed.txt
MpiDefault=none
ReturnToService=2
GresTypes=gpu
NodeName=$host CPUs=$(nproc) RealMemory=$memory Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
EOF
echo "NodeName=$host Name=gpu File=/dev/null" > "$folder/gres.conf"
export SLURM_CONF=$folder/slurm.conf
stop() { for name in slurmd slurmctld; do [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")"; done; true; }
trap stop EXIT
[ -f /etc/munge/munge.key ] || /usr/sbin/mungekey --create
pgrep munged >/dev/null || { mkdir -p /run/munge && chown munge /run/munge && runuser -u munge -- /usr/sbin/munged; }
/usr/sbin/slurmctld
sleep 2
/usr/sbin/slurmd
sleep 3
sinfo

clone=$folder/repository
rm -rf "$clone" && mkdir "$clone"
for part in Snakefile workflow config profiles d2llm baselines notebooks environment.yml; do
    cp -r "$root/$part" "$clone/"
done
cd "$clone"
# The machine is small, its jobs smaller still, and there is no accounting database.
small=$(python -c "
from d2llm.run.stages import STAGES
print(' '.join(f'{name}:mem_mb=2000' for name in STAGES))")
PYTHONPATH="$folder/plugins" python -m snakemake --profile profiles/slurm --configfile config/tiny.yaml \
    --slurm-status-command squeue \
    --jobs 4 --latency-wait 5 --default-resources mem_mb=2000 runtime=20 --set-resources $small \
    -- results/tiny/evaluations/d2llm/base/seed1/scores.parquet
echo "jobs by what Slurm says of their end:"
tr ' ' '\n' < "$folder/completed.txt" | grep --only-matching 'JobState=.*' | sort | uniq -c

#!/usr/bin/env bash
# A SLURM of N nodes on this one machine, all of it in one folder:
#
#   scripts/testbed/slurm_up.sh FOLDER [N]        # 2 nodes, one CPU each
#   . FOLDER/env                                  # sbatch, squeue, scontrol now speak to it
#   scripts/testbed/slurm_down.sh FOLDER
#
# munged, slurmctld and N slurmd, on the loopback, a port each from SLURM_PORT up; no system service and no file
# in /etc is touched. Needs root and: apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge
# FOLDER must be short: munge's socket lies in it, and a socket's path has at most 107 characters.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$1 nodes=${2:-2} port=${SLURM_PORT:-27800} host=$(hostname -s)

"$here/slurm_down.sh" "$folder"
rm -rf "$folder"
mkdir -p "$folder"/{munge,state,log,run}
folder=$(cd "$folder" && pwd)
trap '"$here/slurm_down.sh" "$folder"' EXIT # whatever goes wrong below
chmod 755 "$folder" "$folder/munge" # munged refuses a socket in a folder that not all may enter

head -c 128 /dev/urandom >"$folder/munge/key"
chmod 600 "$folder/munge/key"
munged --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/run/munged.pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed" --num-threads=2

# cred_expire: a requeued job waits until the credential of its first start has expired, two minutes by default.
# FirstJobId from the clock: a new cluster's jobs do not find the run folders of an earlier one's.
cat >"$folder/slurm.conf" <<END
ClusterName=testbed
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=10
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=2,sched_interval=2
SlurmdParameters=config_overrides
FirstJobId=$((($(date +%s) % 90000) * 10 + 1000))
ReturnToService=2
SlurmdTimeout=${SLURMD_TIMEOUT:-20}
SlurmctldTimeout=20
KillWait=${KILL_WAIT:-30}
MinJobAge=600
JobRequeue=1
$(for i in $(seq "$nodes"); do
    echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=${CPUS:-1} RealMemory=4000"
done)
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
echo "CgroupPlugin=cgroup/v1" >"$folder/cgroup.conf"
echo "export SLURM_CONF=$folder/slurm.conf" >"$folder/env"
. "$folder/env"

slurmctld -c
for i in $(seq "$nodes"); do
    mkdir -p "$folder/spool/n$i"
    slurmd -N "n$i"
done
for _ in $(seq 100); do
    if [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)" = "$nodes" ]; then
        echo "SLURM: $nodes nodes; . $folder/env"
        trap - EXIT
        exit 0
    fi
    sleep 0.2
done
echo "SLURM did not come up within 20 s" >&2
tail -n 5 "$folder"/log/*.log >&2
exit 1

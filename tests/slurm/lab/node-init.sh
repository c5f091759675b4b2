#!/bin/bash
# Process 1 of a node, in namespaces of its own; node.sh starts it. usage: node-init.sh NAME ADDRESS/BITS
set -eu
hostname "$1"
mount --bind "$SLURM_LAB/etc/hosts" /etc/hosts
ip link set lo up
until ip link show eth0 > /dev/null 2>&1; do sleep 0.02; done   # node.sh moves it in
ip addr add "$2" dev eth0
ip link set eth0 up
slurmd -N "$1"
set +e
while :; do sleep 3600 & wait $!; done                          # bash reaps the orphaned slurmstepds; slurmd would not

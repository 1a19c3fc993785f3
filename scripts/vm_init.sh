#!/bin/busybox sh
# First process of the virtual machine of `./dev test --vm` (scripts/vm.py). The host's programs are
# seen read-only over 9p; all else lies in memory, and on the two disks that have project quotas.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module" || echo "vm: no module $module"; done </modules/order
root=/newroot
mount -t tmpfs -o mode=755,size=90% root $root
mkdir -p /host $root/proc $root/sys $root/dev $root/run $root/tmp $root/root $root/var/tmp $root/vm
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=262144 host /host || exec poweroff -f
while read -r path; do
    if [ -L "/host$path" ]; then
        mkdir -p "$root${path%/*}"
        ln -s "$(readlink "/host$path")" "$root$path"
    elif [ -d "/host$path" ]; then
        mkdir -p "$root$path"
        mount -o bind "/host$path" "$root$path"
    fi
done </paths
mkdir -p $root/etc
for name in passwd group ld.so.cache nsswitch.conf mke2fs.conf localtime; do
    [ -e "/host/etc/$name" ] && cp "/host/etc/$name" "$root/etc/$name"
done
cp -a /host/etc/alternatives $root/etc/ 2>/dev/null
echo "127.0.0.1 localhost" >$root/etc/hosts
chmod 1777 $root/tmp $root/var/tmp
chmod 711 $root/root
mount -t proc proc $root/proc
mount -t sysfs sys $root/sys
mount -t cgroup2 none $root/sys/fs/cgroup
mount -t devtmpfs dev $root/dev
mkdir -p $root/dev/shm $root/dev/pts $root/vm/out $root/vm/ext4 $root/vm/xfs
mount -t tmpfs -o mode=1777 shm $root/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 pts $root/dev/pts
ln -sf /proc/self/fd $root/dev/fd
mount -t ext4 -o noatime,prjquota /dev/vda $root/vm/ext4 || echo "vm: no ext4 with project quotas"
mount -t xfs -o noatime,prjquota /dev/vdb $root/vm/xfs || echo "vm: no XFS with project quotas"
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 out $root/vm/out || exec poweroff -f
ip link set lo up
read -r seconds _ </proc/uptime
echo "vm: Linux $(uname -r), started in $seconds s"
cp /bin/busybox $root/vm/busybox
# In a chroot nobody may make user namespaces (user_namespaces(7)), so the root is switched.
cat >$root/vm/second <<'END'
/bin/sh /vm/out/command
echo $? >/vm/out/status
sync
umount /vm/ext4 /vm/xfs 2>/dev/null
read -r seconds _ </proc/uptime
echo "vm: ended after $seconds s"
exec /vm/busybox poweroff -f
END
exec switch_root $root /bin/sh /vm/second

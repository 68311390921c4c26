package netboot

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// portOwner is the program that has a port of this machine ("dnsmasq, process
// 812"), empty where it is free: from /proc/net and the open files of all
// processes (proc(5)). protocol is udp or tcp.
func portOwner(protocol string, port int) string {
	inodes := make(map[string]bool)
	for _, table := range []string{protocol, protocol + "6"} {
		f, err := os.Open("/proc/net/" + table)
		if err != nil {
			continue // without IPv6 there is no such table
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			fields := strings.Fields(lines.Text())
			if len(fields) < 10 || protocol == "tcp" && fields[3] != "0A" { // listening
				continue
			}
			_, hex, ok := strings.Cut(fields[1], ":")
			if n, err := strconv.ParseUint(hex, 16, 16); ok && err == nil && int(n) == port {
				inodes["socket:["+fields[9]+"]"] = true
			}
		}
		_ = f.Close() // only read from
	}
	if len(inodes) == 0 {
		return ""
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return "another program"
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && inodes[target] {
			process := strings.Split(link, "/")[2]
			name, err := os.ReadFile("/proc/" + process + "/comm")
			if err != nil {
				continue
			}
			return fmt.Sprintf("%s, process %s", strings.TrimSpace(string(name)), process)
		}
	}
	return "another program"
}

// PortTaken says who has a port; the error is nil where it is free.
func PortTaken(protocol string, port int) error {
	if owner := portOwner(protocol, port); owner != "" {
		return fail(CodePort, "%s port %d is taken by %s", strings.ToUpper(protocol), port, owner)
	}
	return nil
}

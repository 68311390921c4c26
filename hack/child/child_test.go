package child

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asStarter makes the test binary start a child and end without stopping it.
const asStarter = "FIRSTLIGHT_CHILD_TEST_STARTER"

func TestMain(m *testing.M) {
	if os.Getenv(asStarter) != "" {
		c, err := Start(exec.Command("sleep", "60"), false)
		if err != nil {
			panic(err)
		}
		os.Stdout.WriteString(strconv.Itoa(c.PID()) + "\n")
		time.Sleep(100 * time.Millisecond)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestChildDiesWithItsStarter(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), asStarter+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		// A zombie that nobody has reaped yet is dead as well.
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
	t.Error("the child outlived its starter")
}

func TestStopEndsTheWholeGroup(t *testing.T) {
	c, err := Start(exec.Command("sh", "-c", "trap '' TERM; sleep 60 & wait; sleep 60"), false)
	if err != nil {
		t.Fatal(err)
	}
	c.Stop(50 * time.Millisecond)
	c.Stop(0)
	if err := c.Wait(t.Context()); err == nil {
		t.Error("a killed child ended without an error")
	}
	for deadline := time.Now().Add(20 * time.Second); alive(t, c.PID()); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("something of the child's group is left")
		}
	}
}

// alive says whether any process of the group has not ended. A zombie has: it
// waits only for init to take note.
func alive(t *testing.T, group int) bool {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range stats {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // it ended meanwhile
		}
		// proc_pid_stat(5): pid (comm) state ppid pgrp …; comm may hold anything.
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		if len(fields) > 2 && fields[2] == strconv.Itoa(group) && fields[0] != "Z" && fields[0] != "X" {
			return true
		}
	}
	return false
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/firstlight/firstlight/installer/fetch"
	"github.com/firstlight/firstlight/installer/plan"
	"github.com/firstlight/firstlight/installer/progress"
	"github.com/firstlight/firstlight/installer/target"
	"github.com/firstlight/firstlight/storage/tool"
)

// logDirectory is where the new system keeps what the installer left.
const logDirectory = "/var/log/installer"

// summary is summary.json: what an installation was and what it cost.
type summary struct {
	Format          int               `json:"format"`
	Progress        progress.Snapshot `json:"progress"`
	HandOver        string            `json:"handOver"`
	MemoryPeakBytes uint64            `json:"memoryPeakBytes"`
	NetworkReceived uint64            `json:"networkReceivedBytes"`
	DiskWritten     map[string]uint64 `json:"diskWrittenBytes"`
}

// finish leaves the logs in the new system, closes the disks, tells who wants
// to know, and hands over. Where it hands over it does not return.
func (i *installation) finish(ctx context.Context) error {
	if err := i.leaveLogs(); err != nil {
		return fmt.Errorf("leaving the logs: %w", err)
	}
	if err := i.leaveReceipt(ctx); err != nil {
		return err
	}
	if !i.opt.skipStorage {
		if err := i.forgetLastWords(); err != nil {
			return err
		}
	}
	if i.opt.skipStorage {
		i.model.Log(progress.Finish, "-skipStorage: not handing over")
		return i.notifyCompletion(ctx)
	}
	limit := time.Now().Add(shellsAfterSuccess)
	if err := i.letShellsEnd(ctx, limit); err != nil {
		return err
	}
	// After this the disks are whole, whatever happens to the machine.
	i.model.Log(progress.Finish, "unmounting the new system")
	if err := i.disks.Close(); err != nil {
		return err
	}
	if err := i.env.writeRTC(i.env.now()); err != nil {
		i.model.Warn(progress.Finish, err.Error())
	}
	if err := i.notifyCompletion(ctx); err != nil {
		return err
	}
	if err := i.steering.handOver.pass(ctx, func() {
		i.model.Log(progress.Finish, "the hand-over is held (SIGCONT lets it go)")
		i.model.Wait(progress.Finish, "SIGCONT: the hand-over is held")
	}); err != nil {
		return err
	}
	if err := i.letShellsEnd(ctx, limit); err != nil {
		return err
	}
	if i.shells != nil {
		i.shells.Close("the machine hands over to its new system")
	}
	i.model.Logf(progress.Finish, "handing over to %s by %s", i.image.Name, i.by)
	i.model.Done(progress.Finish) // for those who are told: this does not return
	i.forwarded()
	return i.startNewSystem()
}

// letShellsEnd waits for those who look around in the new system, and ends
// what is left of their shells: they would keep it mounted.
func (i *installation) letShellsEnd(ctx context.Context, limit time.Time) error {
	err := i.waitForShells(ctx, limit, func(text string) {
		i.model.Wait(progress.Finish, text)
		if text != "" {
			i.model.Log(progress.Finish, "the hand-over waits for "+text)
		}
	})
	if err == nil && i.shells != nil {
		i.shells.EndAll("the installation is done, and the new system is closed")
	}
	return err
}

// startNewSystem starts the new system. The disk is bootable by now, so where
// kexec fails the firmware boots it.
func (i *installation) startNewSystem() error {
	i.opened.unwind(i.model)
	if i.by == plan.Kexec {
		i.startByKexec()
	}
	return i.env.reboot()
}

// leaveLogs copies log, events, plan, lease and the configuration, less what
// is secret, into the new system.
func (i *installation) leaveLogs() error {
	files, err := i.logFiles()
	if err != nil {
		return err
	}
	return target.Write(i.root, files...)
}

func (i *installation) logFiles() ([]target.File, error) {
	sum, err := json.MarshalIndent(summary{
		Format: 1, Progress: i.model.Snapshot(), HandOver: i.by,
		MemoryPeakBytes: i.meter.memoryPeak.Load(), NetworkReceived: i.meter.networkReceived(), DiskWritten: i.meter.diskWritten(),
	}, "", "  ")
	if err != nil {
		return nil, err
	}
	planned, err := i.plan.JSON()
	if err != nil {
		return nil, err
	}
	log, events, err := i.journal.read()
	if err != nil {
		return nil, err
	}
	files := []target.File{
		logFile("log", log), logFile("events.jsonl", events),
		logFile("summary.json", sum), logFile("plan.json", planned),
	}
	for _, name := range []string{fetch.ConfigJSON, fetch.StorageLayoutJSON, fetch.ImageName, fetch.ImageServer, fetch.ToolsImageName, fetch.SiteServer} {
		if data, ok := i.files[name]; ok {
			files = append(files, logFile(name, data))
		}
	}
	if text := i.earlier.String(); text != "" {
		files = append(files, logFile("earlier.log", []byte(text)))
	}
	if i.lease != nil {
		lease, err := json.MarshalIndent(i.lease, "", "  ")
		if err != nil {
			return nil, err
		}
		files = append(files, logFile("dhcp/"+i.lease.Interface+".json", lease))
	}
	return files, nil
}

func logFile(name string, data []byte) target.File {
	return target.File{Path: logDirectory + "/" + name, Mode: 0o640, Data: data}
}

// notifyCompletion runs -completionNotifier.
func (i *installation) notifyCompletion(ctx context.Context) error {
	if i.opt.completionNotifier == "" {
		return nil
	}
	i.model.Log(progress.Finish, "running "+i.opt.completionNotifier)
	return i.runProgramme(ctx, progress.Finish, tool.Cmd{Name: i.opt.completionNotifier, Args: []string{i.configDir, i.nic.Name}})
}

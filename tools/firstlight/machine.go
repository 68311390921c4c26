package main

import (
	"os/user"

	"github.com/spf13/cobra"
)

func (c *common) machineCommand() *cobra.Command {
	parent := group("machine", "The machines of a site")
	parent.AddCommand(c.machineList(), c.machineShow(), c.machineSet(), c.machineApprove(), c.machineReinstall(), c.machineWatch())
	parent.AddCommand(c.machineBoot(), c.machineTakeover(), c.machineWipe(), c.machineRescue(), c.machineVerify())
	return parent
}

// operator is who does something to a machine, for the audit trail: the person
// behind sudo where there is one.
func (c *common) operator() string {
	if name := c.getenv("SUDO_USER"); name != "" {
		return name
	}
	if u, err := user.Current(); err == nil && u.Username != "" {
		return u.Username
	}
	return "somebody"
}

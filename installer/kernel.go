package main

import (
	"os"
	"slices"
	"strings"
)

// kernelArgument is one word of the kernel's command line.
type kernelArgument struct {
	name, value string
	hasValue    bool
}

// kernelArguments is the kernel's command line, split as the kernel splits
// it: at blanks, double quotes protecting them (kernel-parameters.rst).
type kernelArguments []kernelArgument

// kernelCommandLine is that of the running kernel, after what the boot medium
// says in addition; empty where there is neither.
func kernelCommandLine() kernelArguments {
	// Without /proc there is nothing to obey, and most media say nothing.
	running, _ := os.ReadFile("/proc/cmdline")
	medium, _ := os.ReadFile(mediumOptions)
	return withMedium(string(medium), string(running))
}

// withMedium is what the medium says, followed by what the kernel was given:
// that counts where both say something. The medium says it twice, for there are
// boot loaders that hand over a command line of their own in place of the one in
// a unified kernel image: iPXE gives the name of the file.
func withMedium(medium, running string) kernelArguments {
	given := splitKernelCommandLine(running)
	said := slices.DeleteFunc(splitKernelCommandLine(medium), func(a kernelArgument) bool { return slices.Contains(given, a) })
	return append(said, given...)
}

func splitKernelCommandLine(line string) kernelArguments {
	quoted := false
	words := strings.FieldsFunc(line, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\t' || r == '\n')
	})
	var arguments kernelArguments
	for _, word := range words {
		name, value, hasValue := strings.Cut(strings.ReplaceAll(word, `"`, ""), "=")
		arguments = append(arguments, kernelArgument{name, value, hasValue})
	}
	return arguments
}

// value is that of the last argument called name, "" where there is none.
func (k kernelArguments) value(name string) string {
	last := ""
	for _, argument := range k {
		if argument.name == name {
			last = argument.value
		}
	}
	return last
}

// forNextKernel is what a kernel that is started in place of this one is
// given: everything but what the boot loader added for the old one.
func (k kernelArguments) forNextKernel() []string {
	var words []string
	for _, argument := range k {
		switch argument.name {
		case "BOOT_IMAGE", "initrd", "BOOTIF":
			continue
		}
		word := argument.name
		if argument.hasValue {
			word += "=" + argument.value
		}
		if strings.ContainsAny(argument.value, " \t") {
			word = `"` + word + `"`
		}
		words = append(words, word)
	}
	return words
}

// A stand-in for k3s' agent: it renders containerd's configuration at each start, with handlers for the
// programs that it finds, and runs containerd as its child. Written from k3s' documented behaviour, with
// templates of its own that have the keys of k3s' base templates.
package main

import (
	"bytes"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/template"
)

//go:embed base-v3.toml.tmpl
var baseV3 string

//go:embed base-v2.toml.tmpl
var baseV2 string

type containerd struct {
	Config, Template, Opt, Root, State, Address string
}

type agent struct {
	PauseImage, Snapshotter, CNIBinDir, CNIConfDir string
}

type node struct {
	Containerd     containerd
	AgentConfig    agent
	DefaultRuntime string
	SELinux        bool
}

type handler struct {
	RuntimeType, BinaryName string
}

type values struct {
	Program       string
	NodeConfig    node
	SystemdCgroup bool
	Imports       bool
	ExtraRuntimes map[string]handler
}

// Where k3s looks, and under which names: newer ones have the third as well.
func handlers(root string, cdi bool) map[string]handler {
	names := map[string]string{
		"nvidia":              "nvidia-container-runtime",
		"nvidia-experimental": "nvidia-container-runtime-experimental",
	}
	if cdi {
		names["nvidia-cdi"] = "nvidia-container-runtime.cdi"
	}
	found := map[string]handler{}
	for name, program := range names {
		for _, place := range []string{"/usr/local/nvidia/toolkit", "/usr/bin"} {
			path := filepath.Join(place, program)
			if seen, err := os.Stat(filepath.Join(root, path)); err == nil && !seen.IsDir() {
				found[name] = handler{"io.containerd.runc.v2", path}
				break
			}
		}
	}
	return found
}

func rendered(all values, root string, version int) ([]byte, error) {
	base, text := baseV3, ""
	if version == 2 {
		base = baseV2
	}
	text = base
	for name, itsBase := range map[string]string{"config-v3.toml.tmpl": baseV3, "config.toml.tmpl": baseV2} {
		if data, err := os.ReadFile(filepath.Join(root, all.NodeConfig.Containerd.Template, name)); err == nil {
			text, base = string(data), itsBase
		}
	}
	made, err := template.New("config").Parse(text)
	if err != nil {
		return nil, err
	}
	if _, err = made.New("base").Parse(base); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	err = made.ExecuteTemplate(&out, "config", all)
	return out.Bytes(), err
}

// The setting that the documentation names for the default handler.
func setting(root, name string) string {
	data, _ := os.ReadFile(filepath.Join(root, "/etc/rancher/k3s/config.yaml"))
	for _, line := range strings.Split(string(data), "\n") {
		if key, value, ok := strings.Cut(line, ":"); ok && key == name {
			return strings.Trim(strings.TrimSpace(value), `"`)
		}
	}
	return ""
}

func main() {
	root := flag.String("root", "/", "where the node's files are")
	version := flag.Int("version", 3, "the schema of the base template")
	imports := flag.Bool("imports", true, "whether the base template imports a directory, as since 2026")
	cdi := flag.Bool("cdi", true, "whether nvidia-cdi is made, as since late 2024")
	only := flag.Bool("render", false, "print what would be rendered, and run nothing")
	data := flag.String("data", "/var/lib/rancher/k3s", "the data directory")
	program := flag.String("containerd", "", "the containerd to run")
	flag.Parse()
	home := *data + "/agent"
	run := "/run/k3s/containerd"
	all := values{
		Program: "k3s",
		NodeConfig: node{
			Containerd: containerd{
				Config: home + "/etc/containerd/config.toml", Template: home + "/etc/containerd",
				Opt: home + "/containerd", Root: home + "/containerd", State: run,
				Address: run + "/containerd.sock",
			},
			AgentConfig: agent{
				PauseImage: "rancher/mirrored-pause:3.6", Snapshotter: "overlayfs",
				CNIBinDir: *data + "/data/cni", CNIConfDir: home + "/etc/cni/net.d",
			},
			DefaultRuntime: setting(*root, "default-runtime"),
		},
		Imports:       *imports,
		ExtraRuntimes: handlers(*root, *cdi),
	}
	out, err := rendered(all, *root, *version)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if *only {
		os.Stdout.Write(out)
		return
	}
	c := all.NodeConfig.Containerd
	if err = os.MkdirAll(filepath.Dir(c.Config), 0o700); err == nil {
		err = os.WriteFile(c.Config, out, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	child := exec.Command(*program, "-c", c.Config, "-a", c.Address, "--state", c.State, "--root", c.Root)
	child.Args[0] = "containerd"
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	if err = child.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	go func() {
		<-stop
		child.Process.Signal(syscall.SIGTERM)
	}()
	child.Wait()
	os.Exit(1) // an agent does not outlive its containerd
}

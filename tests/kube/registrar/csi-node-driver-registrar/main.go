// Tells the kubelet of this node that a CSI driver is there. It stands in for the program of this
// name of the Kubernetes CSI project, which the Go module proxy does not serve at a version that
// fits, and has its flags as far as the tests use them.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

var (
	address = flag.String("csi-address", "/run/csi/socket", "where the driver serves")
	seenAt  = flag.String("kubelet-registration-path", "", "the same, as the kubelet sees it")
	dir     = flag.String("plugin-registration-path", "/registration", "the directory that the kubelet watches")
)

// server answers the kubelet.
type server struct {
	registration.UnsafeRegistrationServer
	driver  string
	refused chan error
}

func (s *server) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type:              registration.CSIPlugin,
		Name:              s.driver,
		Endpoint:          *seenAt,
		SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (s *server) NotifyRegistrationStatus(_ context.Context, status *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	if !status.PluginRegistered {
		// The kubelet asks no second time, unless the socket is made anew.
		s.refused <- fmt.Errorf("the kubelet refuses the driver: %s", status.Error)
	} else {
		log.Printf("the kubelet has registered %s", s.driver)
	}
	return &registration.RegistrationStatusResponse{}, nil
}

// nameOf waits until the driver says its name.
func nameOf(ctx context.Context, address string) (string, error) {
	connection, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return "", err
	}
	defer connection.Close()
	info, err := csi.NewIdentityClient(connection).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{}, grpc.WaitForReady(true))
	return info.GetName(), err
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	driver, err := nameOf(ctx, *address)
	if err != nil {
		return fmt.Errorf("asking the driver at %s: %w", *address, err)
	}
	socket := filepath.Join(*dir, driver+"-reg.sock")
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	answers := &server{driver: driver, refused: make(chan error, 1)}
	kubelet := grpc.NewServer()
	registration.RegisterRegistrationServer(kubelet, answers)
	ended := make(chan error, 1)
	go func() { ended <- kubelet.Serve(listener) }()
	// Stopping removes the socket: then the kubelet forgets the driver.
	defer kubelet.Stop()
	select {
	case err = <-ended:
	case err = <-answers.refused:
	case <-ctx.Done():
	}
	return err
}

func main() {
	flag.Parse()
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

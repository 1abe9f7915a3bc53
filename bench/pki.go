package bench

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// A PKI is a throw-away certificate authority with what OpenVPN needs to authenticate both ends.
// The keys are ECDSA on P-256, made anew each time, and valid for a day.
type PKI struct {
	// CA is the authority's certificate in PEM.
	CA []byte
	// TLSCrypt is a static key for --tls-crypt in OpenVPN's format: 2048 random bits.
	TLSCrypt []byte

	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// A Credential is a certificate and its private key in PEM.
type Credential struct {
	Cert, Key []byte
}

// NewPKI makes an authority and a --tls-crypt key.
func NewPKI() (*PKI, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	template := certificate("ovpn-go bench CA")
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	return &PKI{CA: pemBlock("CERTIFICATE", der), TLSCrypt: staticKey(), cert: cert, key: key}, nil
}

// Server issues a certificate for a server.
func (p *PKI) Server(name string) (Credential, error) {
	return p.issue(name, x509.ExtKeyUsageServerAuth)
}

// Client issues a certificate for a client.
func (p *PKI) Client(name string) (Credential, error) {
	return p.issue(name, x509.ExtKeyUsageClientAuth)
}

func (p *PKI) issue(name string, usage x509.ExtKeyUsage) (Credential, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Credential{}, fmt.Errorf("certificate of %s: %w", name, err)
	}
	template := certificate(name)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	der, err := x509.CreateCertificate(rand.Reader, template, p.cert, &key.PublicKey, p.key)
	if err != nil {
		return Credential{}, fmt.Errorf("certificate of %s: %w", name, err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Credential{}, fmt.Errorf("certificate of %s: %w", name, err)
	}
	return Credential{Cert: pemBlock("CERTIFICATE", der), Key: pemBlock("PRIVATE KEY", secret)}, nil
}

func certificate(name string) *x509.Certificate {
	var serial [16]byte
	rand.Read(serial[:])
	serial[0] &= 0x7f // serial numbers are positive
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial[:]),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(24 * time.Hour),
	}
}

func pemBlock(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// staticKey writes 256 random bytes the way `openvpn --genkey tls-crypt` does.
func staticKey() []byte {
	var key [256]byte
	rand.Read(key[:])
	var b strings.Builder
	b.WriteString("-----BEGIN OpenVPN Static key V1-----\n")
	for i := 0; i < len(key); i += 16 {
		b.WriteString(hex.EncodeToString(key[i:i+16]) + "\n")
	}
	b.WriteString("-----END OpenVPN Static key V1-----\n")
	return []byte(b.String())
}

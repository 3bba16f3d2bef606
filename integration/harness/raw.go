package harness

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
)

// CreateDefault makes a collection with ChromaDB's own settings.
func (s *Server) CreateDefault(name string) {
	s.t.Helper()
	var made struct {
		ID string `json:"id"`
	}
	if err := s.call(http.MethodPost, collections, map[string]any{"name": name}, &made); err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids[name] = made.ID
}

// Post sends a request whose body is encoded already, and reads the answer away.
func (s *Server) Post(collection, action string, body []byte) {
	s.t.Helper()
	id, err := s.collection(collection)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.http.Post(s.base+collections+"/"+id+"/"+action, "application/json", bytes.NewReader(body))
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s", resp.Status)
	}
	if err != nil {
		s.t.Fatalf("%s %s: %v", action, collection, err)
	}
}

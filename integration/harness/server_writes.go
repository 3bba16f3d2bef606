package harness

import "net/http"

// Create makes a collection with these HNSW settings, or takes the one that is
// there.
func (s *Server) Create(name string, hnsw map[string]any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var made struct {
		ID string `json:"id"`
	}
	err := s.call(http.MethodPost, collections, map[string]any{
		"name": name, "get_or_create": true, "configuration": map[string]any{"hnsw": hnsw},
	}, &made)
	if err == nil {
		s.ids[name] = made.ID
	}
	return err
}

// TryWrite sends add, update, upsert or delete as ChromaDB's API has it. Once it
// returns nil the write is acknowledged.
func (s *Server) TryWrite(name, verb string, body map[string]any) error {
	id, err := s.collection(name)
	if err != nil {
		return err
	}
	return s.call(http.MethodPost, collections+"/"+id+"/"+verb, body, nil)
}

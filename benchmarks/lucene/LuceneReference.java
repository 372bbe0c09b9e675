// What Lucene itself gives: the terms of texts, and the ranking of a corpus's passages for questions.
//
//   java -cp LUCENE.jar:. LuceneReference terms < texts.jsonl              one JSON string a line
//   java -cp LUCENE.jar:. LuceneReference words < texts.jsonl              the same before the stemmer
//   java -cp LUCENE.jar:. LuceneReference rank CORPUS.tsv 10 < questions.jsonl
//
// `rank` builds the query that Elasticsearch makes of multi_match / best_fields with tie_breaker 0.5.
// Elasticsearch multiplies Lucene's BM25 by k1 + 1, which changes no order; so does this program.
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.util.*;
import org.apache.lucene.analysis.*;
import org.apache.lucene.analysis.en.EnglishAnalyzer;
import org.apache.lucene.analysis.standard.StandardAnalyzer;
import org.apache.lucene.analysis.tokenattributes.CharTermAttribute;
import org.apache.lucene.document.*;
import org.apache.lucene.index.*;
import org.apache.lucene.search.*;
import org.apache.lucene.search.similarities.BM25Similarity;
import org.apache.lucene.store.*;

public class LuceneReference {
  static final float K1 = 1.2f, B = 0.75f;
  static final ObjectMapper JSON = new ObjectMapper();

  public static void main(String[] arguments) throws Exception {
    PrintStream out = new PrintStream(new BufferedOutputStream(System.out), false, "UTF-8");
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    Analyzer analyzer = arguments[0].equals("words") ? new StandardAnalyzer(CharArraySet.EMPTY_SET) : new EnglishAnalyzer();
    IndexSearcher searcher = arguments[0].equals("rank") ? index(Path.of(arguments[1]), analyzer) : null;
    for (String line; (line = in.readLine()) != null; ) {
      List<String> terms = terms(analyzer, JSON.readValue(line, String.class));
      out.println(JSON.writeValueAsString(searcher == null ? terms : rank(searcher, terms, Integer.parseInt(arguments[2]))));
    }
    out.flush();
    System.err.println("Lucene " + org.apache.lucene.util.Version.LATEST);
  }

  static List<String> terms(Analyzer analyzer, String text) throws IOException {
    List<String> terms = new ArrayList<>();
    try (TokenStream stream = analyzer.tokenStream("txt", text)) {
      CharTermAttribute term = stream.addAttribute(CharTermAttribute.class);
      stream.reset();
      while (stream.incrementToken()) terms.add(term.toString());
      stream.end();
    }
    return terms;
  }

  static IndexSearcher index(Path corpus, Analyzer analyzer) throws IOException {
    Directory directory = new MMapDirectory(Files.createTempDirectory("lucene"));
    IndexWriterConfig config = new IndexWriterConfig(analyzer).setSimilarity(new BM25Similarity(K1, B)).setRAMBufferSizeMB(256);
    try (IndexWriter writer = new IndexWriter(directory, config); BufferedReader reader = Files.newBufferedReader(corpus)) {
      reader.readLine();  // the header
      for (String line; (line = reader.readLine()) != null; ) {
        String[] row = line.split("\t", -1);  // no quoted fields here
        Document document = new Document();
        document.add(new StoredField("id", row[0]));
        document.add(new TextField("txt", row[1], Field.Store.NO));
        document.add(new TextField("title", row[2], Field.Store.NO));
        writer.addDocument(document);
      }
    }
    IndexSearcher searcher = new IndexSearcher(DirectoryReader.open(directory));
    searcher.setSimilarity(new BM25Similarity(K1, B));
    return searcher;
  }

  static List<List<Object>> rank(IndexSearcher searcher, List<String> terms, int topk) throws IOException {
    List<Query> fields = new ArrayList<>();
    for (String field : List.of("title", "txt")) {
      BooleanQuery.Builder any = new BooleanQuery.Builder();
      for (String term : terms) any.add(new TermQuery(new Term(field, term)), BooleanClause.Occur.SHOULD);
      fields.add(any.build());
    }
    List<List<Object>> hits = new ArrayList<>();
    for (ScoreDoc hit : searcher.search(new DisjunctionMaxQuery(fields, 0.5f), topk).scoreDocs)
      hits.add(List.of(searcher.storedFields().document(hit.doc).get("id"), hit.score * (K1 + 1)));
    return hits;
  }
}

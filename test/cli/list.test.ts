import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { SessionRecord } from "../../src/base/session.js";
import { SESSIONS } from "../../src/cli/render/columns.js";
import { type List, renderList } from "../../src/cli/render/table.js";
import { type SessionView, viewRecord } from "../../src/sessions/view.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

interface Row {
  id: string;
  bornAt: string;
  size: number | null;
  note: string | null;
}

const LIST: List<Row> = {
  kind: "thing",
  idOf: ({ id }) => id,
  columns: [
    { heading: "THING", field: "id", cut: "middle" },
    { heading: "AGE", field: "bornAt", as: "since", cell: () => "1h" },
    { heading: "SIZE ON DISK", field: "size" },
    { heading: "NOTE", field: "note", wide: true },
  ],
};

function row(id: string, over: Partial<Row> = {}): Row {
  return { id, bornAt: "2026-01-01T00:00:00.000Z", size: 0, note: null, ...over };
}

function csv(rows: readonly Row[]): string {
  return renderList(LIST, rows, { format: "csv", headless: true });
}

/** The CSV field of a note with this text. */
function noteAsCsv(note: string): string {
  return csv([row("a", { note })])
    .replace(/^a,2026-01-01T00:00:00\.000Z,0,/, "")
    .replace(/\r\n$/, "");
}

/** Reads CSV as RFC 4180 defines it. */
function readCsv(text: string): string[][] {
  const records: string[][] = [];
  let record: string[] = [];
  for (const [, quoted, plain = "", end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n)/g)) {
    record.push(quoted === undefined ? plain : quoted.replaceAll('""', '"'));
    if (end === ",") continue;
    records.push(record);
    record = [];
  }
  return records;
}

describe("a list in CSV", () => {
  it.each([
    ['say "hi", bob', '"say ""hi"", bob"'],
    ["two\r\nlines", "two\\u{d}\\u{a}lines"],
    ["red\x1b[31m", "red\\u{1b}[31m"],
    ["李雷 محمد", "李雷 محمد"],
    ["a-b+c=d@e", "a-b+c=d@e"],
  ])("a list in CSV quotes and escapes %j as RFC 4180 defines it", (note, field) => {
    expect(noteAsCsv(note)).toBe(field);
  });

  it.each([
    ["=1+1", "'=1+1"],
    ["+bob", "'+bob"],
    ["-2", "'-2"],
    ["@SUM(A1)", "'@SUM(A1)"],
    ["  =1+1", "'  =1+1"],
    ["＝1+1", "'＝1+1"],
    ["ok,=1+1", '"ok,\'=1+1"'],
    ["ok; =1+1", "ok;' =1+1"],
  ])("a list in CSV puts an apostrophe before the formula in %j", (note, field) => {
    expect(noteAsCsv(note)).toBe(field);
  });

  it("a list in CSV leaves a negative number as it is", () => {
    expect(csv([row("a", { size: -5 })])).toBe("a,2026-01-01T00:00:00.000Z,-5,\r\n");
  });

  it("a list in CSV reads back as one field for each value, and no field begins a formula", () => {
    fc.assert(
      fc.property(
        fc.array(fc.string({ unit: fc.constantFrom(..."a =+-@,;|\"'\r\n\t＝李") }), { maxLength: 5 }),
        (notes) => {
          const records = readCsv(csv(notes.map((note, at) => row(`id-${at}`, { note }))));
          expect(records.map(([id]) => id)).toEqual(notes.map((_, at) => `id-${at}`));
          for (const record of records) {
            expect(record).toHaveLength(4);
            expect(record[3]).not.toMatch(/^\s*[=+\-@]/);
          }
        },
      ),
    );
  });
});

describe("the list of sessions", () => {
  const HOUR_MS = 3_600_000;
  const surroundings = { lease: null, stranded: false, ttlMs: null };
  const session = (over: Partial<SessionRecord>) =>
    viewRecord(sessionRecord("s", { lastUsedAt: new Date().toISOString(), ...over }), surroundings);
  const headings = (...rows: SessionView[]) => renderList(SESSIONS, rows, { format: "table" }).split("\n")[0];

  it("the list of sessions shows when they expire only if one of them expires within a day", () => {
    const late = session({ ttlMs: 25 * HOUR_MS });
    expect(headings(session({}), late)).not.toContain("EXPIRES");
    expect(headings(late, session({ ttlMs: 2 * HOUR_MS }))).toContain("EXPIRES");
    const wide = renderList(SESSIONS, [late], { format: "wide" });
    expect(wide).toMatch(/EXPIRES.*\n.* in 1d /);
    expect([late.expiresAt, session({}).expiresAt]).toEqual([expect.any(String), null]);
  });
});

import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished, vi } from "vitest";
import { openParts } from "../../src/fleet/parts.js";
import { removeFolder } from "../fixtures/remove-folder.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

const SESSIONS = 220;
const AT_MOST = 50;
/** How often `JSON.parse` runs for one record: once for the envelope, and once for the record in it. */
const PARSED_PER_RECORD = 2;

it("a list of many sessions reads at most 50 records and 50 folders in one turn of the event loop", async () => {
  const folder = mkdtempSync(join(tmpdir(), "copilotfleet-list-"));
  const parts = openParts({ env: { HOME: folder, COPILOTFLEET_HOME: join(folder, "state") }, cwd: folder });
  const parse = vi.spyOn(JSON, "parse");
  const view = vi.spyOn(parts.sessions, "viewBeside");
  onTestFinished(async () => {
    parse.mockRestore();
    view.mockRestore();
    await parts.close();
    await removeFolder(folder);
  });
  for (let index = 0; index < SESSIONS; index++) await parts.store.sessions.create(sessionRecord(`s-${index}`));
  const most = { records: 0, views: 0 };
  let isOver = false;
  const count = () => {
    most.records = Math.max(most.records, parse.mock.calls.length / PARSED_PER_RECORD);
    most.views = Math.max(most.views, view.mock.calls.length);
    parse.mockClear();
    view.mockClear();
    if (!isOver) setImmediate(count);
  };
  count();
  most.records = 0;
  const list = await parts.sessions.list();
  isOver = true;
  count();
  expect(list).toHaveLength(SESSIONS);
  expect(most.records).toBeGreaterThan(AT_MOST / 2);
  expect(most.records).toBeLessThanOrEqual(AT_MOST);
  expect(most.views).toBe(AT_MOST);
});

import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { makeNetworkFolder, networkFolder } from "../../../src/sandbox/network/egress.js";

it("only the fleet's account can enter the network folder", () => {
  const state = mkdtempSync(join(tmpdir(), "fleet-network-"));
  onTestFinished(() => rmSync(state, { recursive: true }));
  const folder = makeNetworkFolder(state);
  expect(folder).toBe(networkFolder(state));
  expect([folder, join(folder, "servers")].map((path) => statSync(path).mode & 0o777)).toEqual([0o700, 0o700]);
  expect(() => makeNetworkFolder(state)).not.toThrow();
});

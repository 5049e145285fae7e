import { expect, it, onTestFinished } from "vitest";
import { FleetError } from "../../src/errors.js";
import { purgeUser } from "../../src/peers/purge.js";
import { openStore } from "../../src/store/open.js";
import { temporaryRoot } from "../fixtures/store/store-root.js";

it("a purge still waits for a host that was reported as lost if the host comes back during the purge", async () => {
  const stateRoot = await temporaryRoot();
  const store = openStore("file", stateRoot);
  onTestFinished(async () => await store.close());
  let isGone = true;
  const away = { host: "node-2", isGone, error: new FleetError("FLEET_HOST_AWAY", "Host node-2 does not answer.") };
  const hosts = {
    own: { name: "node-1" },
    names: async () => ["node-1", "node-2"],
    everywhere: async () => {
      isGone = false;
      return { answers: [], missing: [away] };
    },
    registryOf: async () => ({ servers: {} }),
  };
  const directory = { isShared: false, list: async () => [{ name: "node-2", gone: isGone }] };
  const events = { record: async () => undefined, note: () => undefined };
  const context = { store, hosts, directory, events, stateRoot } as unknown as Parameters<typeof purgeUser>[0];
  const { signal } = new AbortController();

  const { remains } = await purgeUser(context, "zoe", {
    dryRun: false,
    ignoreNotFound: true,
    lostHosts: ["node-2"],
    signal,
  });
  expect(remains.find(({ host }) => host === "node-2")?.why).toMatch(/^The host is away\. It erases them when/);
  expect((await store.purges.read("zoe"))?.pending).toContain("node-2");
});

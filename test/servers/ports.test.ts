import { createServer } from "node:net";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Registry } from "../../src/base/server.js";
import { choosePort, isBindable } from "../../src/servers/surroundings.js";
import { serverRecord } from "../fixtures/store/store-records.js";

function registryOf(ports: readonly (number | null)[]): Registry {
  const servers = ports.map((port, index) => [`s${index}`, { ...serverRecord(`s${index}`), port }] as const);
  return { servers: Object.fromEntries(servers) };
}

const range = { from: 5000, to: 5009 };
const port = fc.integer({ min: 4995, max: 5014 });

describe("choosePort", () => {
  it("choosePort returns the preferred port if it is free, or else the lowest free one, and fails if no port is free", () => {
    fc.assert(
      fc.property(fc.uniqueArray(port), fc.uniqueArray(port), fc.option(port), (held, skipped, preferred) => {
        const registry = registryOf([...held, null]);
        const skip = new Set(skipped);
        const free = Array.from({ length: 10 }, (_, index) => 5000 + index).filter(
          (candidate) => !held.includes(candidate) && !skip.has(candidate),
        );
        const choose = () => choosePort(registry, range, skip, preferred);
        if (free.length === 0) {
          expect(choose).toThrow(expect.objectContaining({ code: "FLEET_PORTS_EXHAUSTED", exit: 6 }));
        } else {
          expect(choose()).toBe(preferred !== null && free.includes(preferred) ? preferred : free[0]);
        }
      }),
    );
  });

  it("choosePort does not change the registry", () => {
    const registry = registryOf([5000]);
    const before = JSON.stringify(registry);
    expect(choosePort(registry, range, new Set([5001]), null)).toBe(5002);
    expect(JSON.stringify(registry)).toBe(before);
  });
});

describe("isBindable", () => {
  it("isBindable returns false for a port that is in use, and true once the port is free", async () => {
    const holder = createServer();
    await new Promise<void>((resolve) => {
      holder.listen(0, "127.0.0.1", resolve);
    });
    const address = holder.address();
    const held = typeof address === "object" && address !== null ? address.port : 0;
    expect(await isBindable("127.0.0.1", held)).toBe(false);
    await new Promise((resolve) => {
      holder.close(resolve);
    });
    expect(await isBindable("127.0.0.1", held)).toBe(true);
  });
});

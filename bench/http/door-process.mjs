// Opens the HTTP API (`http`) or the front door (`door`) of the built library in a separate process, like the parts in
// `bench/gateway-process.ts`. It does not run the sources, because `tsx` names functions in a way that costs memory.
import { createInterface } from "node:readline";
import { Fleet } from "../../dist/index.js";

const fleet = await Fleet.open();
const listen = { host: "127.0.0.1", port: 0 };
const isHttp = process.argv[2] === "http";
const door = isHttp ? await fleet.doors.openHttp({ listen }) : await fleet.doors.open({ listen });
say({ url: isHttp ? door.url : `127.0.0.1:${door.address.port}` });
for await (const _ of createInterface({ input: process.stdin })) {
  // Collect twice, because finalizers of the first collection release objects that only the second can collect.
  globalThis.gc?.();
  globalThis.gc?.();
  say(process.memoryUsage());
}
await door.close();
await fleet.close();

function say(message) {
  process.stdout.write(`${JSON.stringify(message)}\n`);
}

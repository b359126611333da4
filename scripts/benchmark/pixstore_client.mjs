// The operations of the npm package pixstore, timed. Speaks as api_client.py does.
// node pixstore_client.mjs PACKAGE_DIRECTORY STORE SIZE_BYTES COUNT
import { randomBytes } from 'node:crypto';
import { createInterface } from 'node:readline';
import { performance } from 'node:perf_hooks';
import { pathToFileURL } from 'node:url';
import path from 'node:path';

const [packageDirectory, store, sizeBytes, count] = process.argv.slice(2);
const module = path.join(packageDirectory, 'node_modules', 'pixstore', 'backend', 'index.js');
const pixstore = await import(pathToFileURL(module).href);
pixstore.initPixstoreBackend({
  imageRootDir: path.join(store, 'images'),
  databasePath: path.join(store, 'pixstore.sqlite'),
  defaultEndpointEnabled: false,
});

const image = () => Buffer.concat([Buffer.from([0xff, 0xd8, 0xff]), randomBytes(Number(sizeBytes) - 3)]);
const [first, second] = [image(), image()];
let ids = [];
const phases = {
  async save(number) {
    for (let index = 0; index < number; index++) ids.push((await pixstore.saveImage(first, 'bench')).id);
  },
  async update() {
    for (const id of ids) await pixstore.updateImage(id, second);
  },
  async delete() {
    for (const id of ids) if (!(await pixstore.deleteImage(id))) throw new Error(`${id} was gone`);
    ids = [];
  },
};

for (const phase of ['save', 'update', 'delete']) await phases[phase](3);
console.log('ready');
for await (const phase of createInterface({ input: process.stdin })) {
  const began = performance.now();
  await phases[phase](Number(count));
  console.log((performance.now() - began) / 1000);
}
